"""The page of any run: of a realignment, of a study, or of a search."""

from __future__ import annotations

from flows.report.find import manifest_of
from infra.store.store import Store


def page_of(store: Store, run_id: str, prompts: int | None = None) -> str:
    """Render the page of a run.

    Args:
        prompts: held-out prompts shown with their responses; None: as the run's configuration says.

    Raises:
        ReportError: the run has no manifest, or its flow has not got far enough for a page.
    """
    flow = manifest_of(store, run_id).flow
    if flow == "study":
        from flows.report.study import render_study

        return render_study(store, run_id)
    if flow == "tune":
        from flows.report.tune import render_tune

        return render_tune(store, run_id)
    from flows.report.page import render

    return render(store, run_id, prompts)

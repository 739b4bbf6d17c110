"""The page of one search: its outcome, the line to configure, every trial, figures. Self-contained, like ``page.py``."""

from __future__ import annotations

from flows.report.find import ReportError, manifest_of
from flows.report.html import inline_figures, render_template, web_links, yaml_text
from flows.report.setting_lines import options_text, values_yaml
from infra.store.store import Store
from tasks.stages.tune import STAGE


def render_tune(store: Store, run_id: str) -> str:
    """Render the page.

    Raises:
        ReportError: the run has no manifest, or is not a search.
    """
    run = manifest_of(store, run_id)
    planned = next((stage for stage in run.stages if stage.stage == STAGE.name), None)
    if planned is None:
        raise ReportError(f"run {run_id!r} is not a search", hint="`dora report` writes the page of a realignment")
    content = store.read_result(planned.stage, planned.digest) if planned.is_finished else None  # of this run, not of a later one
    result = STAGE.parse(content) if content else None
    facts = result.facts if result else None
    return render_template(
        "tune.html",
        run=run,
        links=web_links(run.links),
        facts=facts,
        keys=list(dict.fromkeys(key for trial in facts.trials for key in trial.values)) if facts else [],
        options=options_text(facts.best.values) if facts else "",
        lines=values_yaml(facts.best.values) if facts and facts.best.values else "",
        figures=inline_figures(STAGE.name, result) if result else [],
        config=yaml_text(run.config),
    )

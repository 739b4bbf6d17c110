"""Figures of the data: responses by source, and bad rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.report.drawing import PALETTE, bar_chart, sorted_by
from flows.report.figure_registry import stage_figure
from tasks.stages import ingest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@stage_figure("ingest")
def responses(facts: ingest.Facts) -> Figure | None:
    sources = sorted_by(facts.sources, lambda source: -source.responses)
    labels = [f"{source.responses:,} ({source.share:.1%})" for source in sources.values()]
    return bar_chart("Responses per source", "responses", {name: source.responses for name, source in sources.items()}, labels)


@stage_figure("ingest")
def quarantine(facts: ingest.Facts) -> Figure | None:
    reasons = sorted_by(facts.bad_by_reason, lambda rows: -rows)
    return bar_chart("Quarantined rows by reason", "rows", reasons, [f"{n:,}" for n in reasons.values()], PALETTE[1])

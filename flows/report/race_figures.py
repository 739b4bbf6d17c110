"""Figure of the race that chooses the objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.report.drawing import OTHER, PALETTE, row_axes
from flows.report.figure_registry import stage_figure
from tasks.stages import race

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 16


@stage_figure("race")
def entrants_of_the_race(facts: race.Facts) -> Figure | None:
    """Golden loss above that of the best weighting, ± one standard error; the best entrants, and always erm and golden only."""
    rows = [s for i, s in enumerate(facts.standings) if i < SHOWN or s.name in ("erm", "golden_only")]
    notes = [f"{row.share:.0%}" if row.share >= 0.005 else "" for row in rows]
    figure, axes = row_axes("Golden loss of each entrant", "nats above the best weighting", [row.name for row in rows], notes)
    for place, row in enumerate(rows):
        error = row.error or 0.0
        color = PALETTE[0] if row.share >= 0.005 else OTHER
        axes.plot([row.excess - error, row.excess + error], [place, place], color=color, linewidth=2)
        axes.plot([row.excess], [place], marker="D", color=color, markersize=6, linestyle="none")
    return figure

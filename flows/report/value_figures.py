"""Figures of what the labels of sources are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.report.drawing import OTHER, PALETTE, legend_below, row_axes, short, single_axes
from flows.report.figure_registry import stage_figure
from tasks.stages import value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = len(PALETTE)


@stage_figure("value")
def exchange_rates(facts: value.Facts) -> Figure | None:
    """Rates with intervals; n·κ at the right edge."""
    sources = {name: source for name, source in facts.sources.items() if source.rate is not None}
    if not sources:
        return None
    notes = [f"≙ {source.worth or 0:,.0f} labels" for source in sources.values()]
    figure, axes = row_axes("Golden labels that one label is worth", "exchange rate", sources, notes)
    for row, source in enumerate(sources.values()):
        assert source.rate is not None
        axes.plot([source.rate.low, source.rate.high], [row, row], color=PALETTE[0], linewidth=2)
        axes.plot([source.rate.value], [row], marker="D", color=PALETTE[1], markersize=6, linestyle="none")
    axes.set_xlim(-0.03, 1.03)
    return figure


@stage_figure("value")
def golden_loss_by_rate(facts: value.Facts) -> Figure | None:
    """Profile of each source; those past the palette are left out."""
    profiles = {name: source.profile for name, source in facts.sources.items() if source.profile}
    if not profiles:
        return None
    figure, axes = single_axes("Golden loss by exchange rate", "exchange rate of one source", "nats")
    for colour, (name, profile) in zip(PALETTE, list(profiles.items())[:SHOWN], strict=False):
        axes.plot([float(kappa) for kappa in profile], list(profile.values()), marker="o", markersize=3, color=colour, label=short(name))
    if facts.golden_alone is not None:
        axes.axhline(facts.golden_alone, color=OTHER, linestyle="--", linewidth=1, label="golden alone")
    axes.set_xscale("symlog", linthresh=0.03)
    axes.set_xlim(left=0)
    legend_below(figure, axes)
    return figure

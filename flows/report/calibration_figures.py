"""Figures of the calibration factor h."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.report.drawing import OTHER, PALETTE, draw_stack, legend_below, row_axes, short, single_axes, sorted_by
from flows.report.figure_registry import stage_figure
from tasks.stages import calibrate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BALANCE_ROWS = 14  # statistics in the figure


@stage_figure("calibrate")
def h_by_source(facts: calibrate.Facts) -> Figure | None:
    sources = sorted_by(facts.h, lambda factors: factors.quantiles["0.5"])
    if not sources:
        return None
    figure, axes = row_axes("Calibration factor by source", "h", sources)
    figure.supxlabel("box: quartiles, whiskers: 5 % to 95 %, diamond: mean", fontsize=8)
    boxes = [
        {"whislo": q["0.05"], "q1": q["0.25"], "med": q["0.5"], "q3": q["0.75"], "whishi": q["0.95"], "mean": s.mean, "fliers": []}
        for s in sources.values()
        for q in [s.quantiles]
    ]
    axes.axvline(1.0, color=OTHER, linewidth=1, linestyle="--")
    axes.bxp(
        boxes,
        positions=range(len(boxes)),
        orientation="horizontal",
        widths=0.55,
        showmeans=True,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": PALETTE[5], "alpha": 0.6, "edgecolor": PALETTE[0]},
        medianprops={"color": PALETTE[0], "linewidth": 2},
        whiskerprops={"color": PALETTE[0]},
        capprops={"color": PALETTE[0]},
        meanprops={"marker": "D", "markerfacecolor": PALETTE[1], "markeredgecolor": "none", "markersize": 5},
    )
    axes.set_xlim(left=0)
    return figure


@stage_figure("calibrate")
def h_histogram(facts: calibrate.Facts) -> Figure | None:
    """Stacked counts; sources past the palette are one grey layer."""
    edges, counts = facts.histogram.edges, facts.histogram.counts
    if not counts:
        return None
    ordered = sorted(counts, key=lambda name: -sum(counts[name]))
    named = ordered if len(ordered) <= len(PALETTE) else ordered[: len(PALETTE) - 1]
    layers = {short(name): counts[name] for name in named}
    if rest := ordered[len(named) :]:
        layers[f"{len(rest)} others"] = [sum(column) for column in zip(*(counts[name] for name in rest), strict=True)]
    figure, axes = single_axes("Distribution of the calibration factor", "h", "responses")
    draw_stack(axes, edges, layers)
    legend_below(figure, axes)
    return figure


@stage_figure("calibrate")
def balance(facts: calibrate.Facts) -> Figure | None:
    """The statistics that differ most, all responses alike and weighted by h; within ±.1 counts as balanced."""
    if facts.balance is None:
        return None
    furthest = sorted_by(facts.balance.statistics, lambda one: -max(abs(one.before), abs(one.after)))
    shown = dict(list(furthest.items())[:BALANCE_ROWS])
    figure, axes = row_axes("Text statistics beside golden responses", "standardised mean difference", shown)
    axes.axvline(0.0, color=OTHER, linewidth=1)
    axes.axvspan(-0.1, 0.1, color=OTHER, alpha=0.2, linewidth=0)
    for key, marker, colour, label in (("before", "o", OTHER, "all alike"), ("after", "D", PALETTE[1], "weighted by h")):
        values = [getattr(one, key) for one in shown.values()]
        axes.plot(values, range(len(shown)), marker, color=colour, markersize=5, label=label)
    legend_below(figure, axes)
    return figure

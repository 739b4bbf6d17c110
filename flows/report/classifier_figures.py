"""Figures of the source classifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.report.drawing import OTHER, PALETTE, colours, legend_below, panel_grid, row_axes, short, single_axes, sorted_by
from flows.report.figure_registry import stage_figure
from tasks.stages import classify

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@stage_figure("classify")
def auc(facts: classify.Facts) -> Figure | None:
    """AUC with its interval, beside the AUC of the prompt alone and of the length alone; if one is high, the classifier may rely on it."""
    known = {name: (head, head.auc) for name, head in facts.sources.items() if head.auc is not None}
    sources = sorted_by(known, lambda head: -head[1])
    if not sources:
        return None
    figure, axes = row_axes("How well golden and source are distinguished", "AUC on held-out prompts", sources)
    rows, heads = range(len(sources)), [head for head, _ in sources.values()]
    axes.axvline(0.5, color=OTHER, linewidth=1, linestyle="--")
    for row, head in zip(rows, heads, strict=True):
        if head.auc_low is not None and head.auc_high is not None:
            axes.hlines(row, head.auc_low, head.auc_high, color=PALETTE[0], linewidth=3, alpha=0.45)
    axes.plot([value for _, value in sources.values()], rows, "o", color=PALETTE[0], label="classifier")
    for key, marker, colour, label in (
        ("prompt_only_auc", "x", PALETTE[1], "prompt only"),
        ("length_only_auc", "d", PALETTE[4], "length only"),
    ):
        points = [(value, row) for head, row in zip(heads, rows, strict=True) if (value := getattr(head, key)) is not None]
        axes.plot(*zip(*points, strict=True) if points else ([], []), marker, color=colour, markersize=5, label=label)
    axes.set_xlim(min(0.4, axes.get_xlim()[0]), 1.01)
    legend_below(figure, axes)
    return figure


@stage_figure("classify")
def classifier_loss(facts: classify.Facts) -> Figure | None:
    folds: dict[int, list[tuple[int, float]]] = {}
    for point in facts.curve:
        folds.setdefault(point.fold, []).append((point.step, point.loss))
    if not folds:
        return None
    figure, axes = single_axes("Classifier training", "optimisation step", "loss")
    for colour, (fold, points) in zip(colours(len(folds)), sorted(folds.items()), strict=True):
        axes.plot(*zip(*sorted(points), strict=True), color=colour, label=f"fold {fold}", marker="o" if len(points) == 1 else None)
    axes.legend(ncols=4)
    return figure


@stage_figure("classify")
def reliability(facts: classify.Facts) -> Figure | None:
    """Small multiples: one square per source; the point's area is its number of responses."""
    sources = {name: head for name, head in facts.sources.items() if head.reliability.count and head.ece is not None}
    if not sources:
        return None
    figure, panels = panel_grid(len(sources), columns=5, height=2.25, share=True)
    for axes, (name, head) in zip(panels, sources.items(), strict=True):
        curve = head.reliability
        most = max(curve.count)
        axes.plot([0, 1], [0, 1], color=OTHER, linewidth=1, linestyle="--")
        axes.plot(curve.confidence, curve.accuracy, color=PALETTE[0], linewidth=1.2)
        axes.scatter(curve.confidence, curve.accuracy, s=[6 + 60 * n / most for n in curve.count], color=PALETTE[0], alpha=0.75)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        axes.set_title(f"{short(name, 25)}\nECE {head.ece:.3f}", fontsize=8, fontweight="normal")
    figure.supxlabel("predicted P(golden)", fontsize=9)
    figure.supylabel("share that is golden", fontsize=9)
    return figure

"""Figures of a stage, from the facts in its ``result.json``: the same ones in MLflow and in the report.

Those of trainings are in ``training_figures.py``, of held-out prompts in ``evaluation_figures.py``, of the ``study`` stage in
``study_figures.py``, style and pieces in ``drawing.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flows.report import evaluation_figures, study_figures, training_figures
from flows.report.drawing import (
    OTHER,
    PALETTE,
    STYLE,
    bar_chart,
    colours,
    draw_stack,
    legend_below,
    panel_grid,
    row_axes,
    short,
    single_axes,
    sorted_by,
)
from tasks.runtime.facts import AnyFacts
from tasks.stages.registry import STAGES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Facts = dict[str, Any]


def figures_for(stage: str, result: dict[str, Any]) -> dict[str, Figure]:
    """Every figure a stage's facts support, by name; empty for a stage that has none.

    Args:
        result: the stage's ``result.json``.
    """
    from matplotlib import rc_context

    facts: Any = STAGES[stage].facts.model_validate(result["facts"])
    if isinstance(facts, AnyFacts):
        facts = result["facts"]
    drawn = {}
    with rc_context(STYLE):
        for name, draw in FIGURES.get(stage, {}).items():
            figure = draw(facts)
            if figure is not None:
                drawn[name] = figure
    return drawn


# ------------------------------------------------------------------------------------------------------------- stages


def _responses(facts: Facts) -> Figure | None:
    sources = sorted_by(facts["sources"], "responses")
    labels = [f"{s['responses']:,} ({s['share']:.1%})" for s in sources.values()]
    return bar_chart("Responses per source", "responses", {name: s["responses"] for name, s in sources.items()}, labels)


def _quarantine(facts: Facts) -> Figure | None:
    reasons = dict(sorted(facts["bad_by_reason"].items(), key=lambda item: -item[1]))
    return bar_chart("Quarantined rows by reason", "rows", reasons, [f"{n:,}" for n in reasons.values()], PALETTE[1])


def _reliability(facts: Facts) -> Figure | None:
    """Small multiples: one square per source; the point's area is its number of responses."""
    sources = {name: s for name, s in facts["sources"].items() if s["reliability"]["count"] and s["ece"] is not None}
    if not sources:
        return None
    figure, panels = panel_grid(len(sources), columns=5, height=2.25, share=True)
    for axes, (name, source) in zip(panels, sources.items(), strict=True):
        curve = source["reliability"]
        most = max(curve["count"])
        axes.plot([0, 1], [0, 1], color=OTHER, linewidth=1, linestyle="--")
        axes.plot(curve["confidence"], curve["accuracy"], color=PALETTE[0], linewidth=1.2)
        axes.scatter(curve["confidence"], curve["accuracy"], s=[6 + 60 * n / most for n in curve["count"]], color=PALETTE[0], alpha=0.75)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        axes.set_title(f"{short(name, 25)}\nECE {source['ece']:.3f}", fontsize=8, fontweight="normal")
    figure.supxlabel("predicted P(golden)", fontsize=9)
    figure.supylabel("share that is golden", fontsize=9)
    return figure


def _auc(facts: Facts) -> Figure | None:
    """AUC with its interval, beside what the prompt alone and the length alone achieve (high: the classifier may read those)."""
    sources = sorted_by({name: s for name, s in facts["sources"].items() if s["auc"] is not None}, "auc")
    if not sources:
        return None
    figure, axes = row_axes("How well golden and source are told apart", "AUC on held-out prompts", sources)
    rows, values = range(len(sources)), sources.values()
    axes.axvline(0.5, color=OTHER, linewidth=1, linestyle="--")
    ranges = [(row, s["auc_low"], s["auc_high"]) for row, s in zip(rows, values, strict=True) if s["auc_low"] is not None]
    axes.hlines([r[0] for r in ranges], [r[1] for r in ranges], [r[2] for r in ranges], color=PALETTE[0], linewidth=3, alpha=0.45)
    axes.plot([s["auc"] for s in values], rows, "o", color=PALETTE[0], label="classifier")
    for key, marker, colour, label in (
        ("prompt_only_auc", "x", PALETTE[1], "prompt only"),
        ("length_only_auc", "d", PALETTE[4], "length only"),
    ):
        points = [(s[key], row) for s, row in zip(values, rows, strict=True) if s[key] is not None]
        axes.plot(*zip(*points, strict=True) if points else ([], []), marker, color=colour, markersize=5, label=label)
    axes.set_xlim(min(0.4, axes.get_xlim()[0]), 1.01)
    legend_below(figure, axes)
    return figure


def _classifier_loss(facts: Facts) -> Figure | None:
    folds: dict[int, list[tuple[int, float]]] = {}
    for point in facts["curve"]:
        folds.setdefault(point["fold"], []).append((point["step"], point["loss"]))
    if not folds:
        return None
    figure, axes = single_axes("Classifier training", "optimisation step", "loss")
    for colour, (fold, points) in zip(colours(len(folds)), sorted(folds.items()), strict=True):
        axes.plot(*zip(*sorted(points), strict=True), color=colour, label=f"fold {fold}", marker="o" if len(points) == 1 else None)
    axes.legend(ncols=4)
    return figure


def _h_by_source(facts: Facts) -> Figure | None:
    sources = dict(sorted(facts["h"].items(), key=lambda item: item[1]["quantiles"]["0.5"]))
    if not sources:
        return None
    figure, axes = row_axes("Calibration factor by source", "h", sources)
    figure.supxlabel("box: quartiles, whiskers: 5 % to 95 %, diamond: mean", fontsize=8)
    boxes = [
        {"whislo": q["0.05"], "q1": q["0.25"], "med": q["0.5"], "q3": q["0.75"], "whishi": q["0.95"], "mean": s["mean"], "fliers": []}
        for s in sources.values()
        for q in [s["quantiles"]]
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


def _h_histogram(facts: Facts) -> Figure | None:
    """Stacked counts; sources past the palette are one grey layer."""
    edges, counts = facts["histogram"]["edges"], facts["histogram"]["counts"]
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


FIGURES: dict[str, dict[str, Callable[[Any], Figure | None]]] = {
    "ingest": {"responses": _responses, "quarantine": _quarantine},
    "classify": {"auc": _auc, "reliability": _reliability, "classifier_loss": _classifier_loss},
    "calibrate": {"h_by_source": _h_by_source, "h_histogram": _h_histogram},
    **training_figures.FIGURES,
    **evaluation_figures.FIGURES,
    "study": study_figures.FIGURES,
}

"""Figures of the training stages, from the curves in their facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.report.drawing import draw_curve, draw_stack, legend_below, panel_grid, short, single_axes
from flows.report.figure_registry import stage_figure
from tasks.training.facts import TrainingFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAR = 10.0
"""Ratio from which values of λ share no linear axis."""
SHARE = "weight_share_"  # curves of the align stage: a source's share of a step's weights
CURVES = {
    "loss": "loss",
    "objective": "objective",
    "accuracy": "preference accuracy",
    "margin": "reward margin (nats)",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "tokens_per_second": "tokens per second",
}


@stage_figure("sft", "reward", "align")
def training(facts: TrainingFacts) -> Figure | None:
    steps, curve = facts.curve.step, facts.curve.measures
    if not steps or not curve.keys() & CURVES.keys():
        return None
    names = [name for name in CURVES if name in curve]
    figure, panels = panel_grid(len(names), columns=4, height=1.9)
    for axes, name in zip(panels, names, strict=True):
        draw_curve(axes, steps, curve[name], noisy=name != "learning_rate")
        axes.set_title(CURVES[name], fontsize=9)
    figure.supxlabel("optimisation step", fontsize=9)
    return figure


@stage_figure("align")
def objective_weights(facts: TrainingFacts) -> Figure | None:
    """Effective share of the batch: 1 where every record weighs the same, 1/batch where one record has all the weight."""
    steps, curve = facts.curve.step, facts.curve.measures
    if not curve.get("weight_ess"):
        return None
    titles = {"weight_ess": "effective share of the batch", "max_weight": "largest weight of one record", "lambda": "λ"}
    shown = {name: title for name, title in titles.items() if name in curve}
    figure, panels = panel_grid(len(shown), columns=3, height=2.2)
    for axes, (name, title) in zip(panels, shown.items(), strict=True):
        axes.set_title(title, fontsize=9)
        if name == "lambda":
            _draw_lambda(axes, steps, curve[name])
        else:
            draw_curve(axes, steps, curve[name])
            axes.set_ylim(0, 1.02)
    figure.supxlabel("optimisation step", fontsize=9)
    return figure


def _draw_lambda(axes: Axes, steps: list[int], values: list[float]) -> None:
    """Draw λ from the second step on where the first, at which its control starts, is far above all others; the number stays as text."""
    first, rest = values[0], values[1:]
    is_start = bool(rest) and first > FAR * max(rest)
    draw_curve(axes, steps[1:] if is_start else steps, rest if is_start else values)
    if is_start:
        axes.annotate(f"{first:.3g} at step {steps[0]}", (0.98, 0.93), xycoords="axes fraction", ha="right", va="top", fontsize=8)
    shown = rest if is_start else values
    if min(shown) > 0 and max(shown) > FAR * min(shown):
        axes.set_yscale("log")


@stage_figure("align")
def weight_shares(facts: TrainingFacts) -> Figure | None:
    """Each source's share of a step's weights, as a running mean over a twentieth of the steps."""
    steps, curve = facts.curve.step, facts.curve.measures
    names = [name for name in curve if name.startswith(SHARE)]
    if not names:
        return None
    figure, axes = single_axes("Share of the weight by source", "optimisation step", "share")
    layers: dict[str, list[float]]
    edges, layers = [s - 0.5 for s in (*steps, steps[-1] + 1)], {}
    window = max(1, len(steps) // 20)
    for name in names:
        values = curve[name]
        chunks = [values[max(0, i - window) : i + window + 1] for i in range(len(values))]
        layers[short(name.removeprefix(SHARE))] = [sum(chunk) / len(chunk) for chunk in chunks]
    draw_stack(axes, edges, layers)
    axes.set_ylim(0, 1)
    legend_below(figure, axes)
    return figure

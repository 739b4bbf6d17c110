"""Figures of a search: how trials learn, and their outcome over each varied number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.report.drawing import OTHER, PALETTE, panel_grid, single_axes
from flows.report.figure_registry import stage_figure
from tasks.stages import tune

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.stages._tune_facts import TrialFacts


@stage_figure("tune")
def trials_by_step(facts: tune.Facts) -> Figure | None:
    """Golden loss at every rung; the best trial and the configuration as it is in colour."""
    shown = [trial for trial in facts.trials if trial.rungs]
    if not shown:
        return None
    figure, axes = single_axes("Golden loss of every trial", "optimisation step", "nats")
    for trial in reversed(shown):
        colour, width = _colour(trial, facts), 1.0 if _colour(trial, facts) == OTHER else 2.0
        label = "best" if trial == facts.best else "as configured" if not trial.values else None
        steps, losses = [rung.step for rung in trial.rungs], [rung.loss for rung in trial.rungs]
        axes.plot(steps, losses, color=colour, linewidth=width, marker="o", markersize=3, label=label)
    axes.legend()
    return figure


@stage_figure("tune")
def loss_by_value(facts: tune.Facts) -> Figure | None:
    """Golden loss over each number that was varied; trials that were stopped early are hollow."""
    keys = [key for key in dict.fromkeys(key for trial in facts.trials for key in trial.values) if _numbers(facts, key)]
    if not keys:
        return None
    figure, panels = panel_grid(len(keys), columns=3, height=2.4)
    for axes, key in zip(panels, keys, strict=True):
        for trial, number in _numbers(facts, key):
            filled = _colour(trial, facts) if trial.state == "finished" else "none"
            axes.plot([number], [trial.loss.value], marker="o", markersize=5, markeredgecolor=_colour(trial, facts), markerfacecolor=filled)  # type: ignore[union-attr]
        numbers = [number for _, number in _numbers(facts, key)]
        if min(numbers) > 0 and max(numbers) / min(numbers) > 20:
            axes.set_xscale("log")
        axes.set_title(key, fontsize=9)
    figure.supylabel("golden loss, nats", fontsize=9)
    return figure


def _numbers(facts: tune.Facts, key: str) -> list[tuple[TrialFacts, float]]:
    """Trials with a loss and a number for the key."""
    found = [(trial, trial.values[key]) for trial in facts.trials if key in trial.values and trial.loss is not None]
    return [(trial, float(value)) for trial, value in found if isinstance(value, int | float) and not isinstance(value, bool)]


def _colour(trial: TrialFacts, facts: tune.Facts) -> str:
    return PALETTE[0] if trial == facts.best else PALETTE[1] if not trial.values else OTHER

"""Figures of a search."""

from __future__ import annotations

from flows.report.tune_figures import loss_by_value, trials_by_step
from tests.flows.report.test_tune import LAMBDA, make_facts


def test_every_measured_trial_is_a_line_and_the_best_is_named() -> None:
    figure = trials_by_step(make_facts())
    assert figure is not None
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert len(figure.axes[0].lines) == 3 and {"best", "as configured"} <= set(lines)
    assert list(lines["best"].get_xdata()) == [1, 3, 9]


def test_numbers_are_points_over_their_values_and_names_are_not() -> None:
    facts = make_facts()
    figure = loss_by_value(facts)
    assert figure is not None and [axes.get_title() for axes in figure.axes if axes.get_title()] == [LAMBDA]
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[0.3]], "auto is no number, and the failed trial has no loss"
    names = [trial.evolve(values={LAMBDA: "auto"}) for trial in facts.trials]
    assert loss_by_value(facts.evolve(trials=names)) is None
    assert trials_by_step(facts.evolve(trials=facts.trials[3:])) is None

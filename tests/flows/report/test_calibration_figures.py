"""Figures of the calibration factor."""

from __future__ import annotations

from flows.report.calibration_figures import BALANCE_ROWS, balance, h_by_source, h_histogram
from flows.report.drawing import PALETTE
from tasks.stages import calibrate
from tests.flows.report.runs import MANY, make_facts


def test_sources_are_ordered_by_their_median() -> None:
    facts = calibrate.Facts.model_validate(make_facts(["human", "a", "b", "c"])["calibrate"])
    by_median = sorted(facts.h, key=lambda name: facts.h[name].quantiles["0.5"])
    assert [label.get_text() for label in h_by_source(facts).axes[0].get_yticklabels()] == by_median


def test_sources_beyond_the_palette_are_one_layer_and_no_response_is_lost() -> None:
    facts = calibrate.Facts.model_validate(make_facts(MANY)["calibrate"])
    figure = h_histogram(facts)
    layers = figure.axes[0].patches
    assert len(layers) == len(PALETTE) and layers[-1].get_label() == f"{len(MANY) - len(PALETTE) + 1} others"
    top = layers[-1].get_data().values
    assert top.sum() == sum(map(sum, facts.histogram.counts.values()))


def test_no_responses_no_figures() -> None:
    empty = make_facts(["human"])["calibrate"] | {"h": {}, "histogram": {"edges": [0.0, 1.0], "counts": {}}}
    facts = calibrate.Facts.model_validate(empty)
    assert h_by_source(facts) is None and h_histogram(facts) is None


def test_the_statistics_that_differ_most_are_shown_before_and_after() -> None:
    facts = calibrate.Facts.model_validate(make_facts(MANY)["calibrate"])
    assert facts.balance is not None
    figure = balance(facts)
    worst = max(facts.balance.statistics, key=lambda name: abs(facts.balance.statistics[name].before))
    assert len(facts.balance.statistics) > BALANCE_ROWS == len(figure.axes[0].get_yticklabels())
    assert figure.axes[0].get_yticklabels()[0].get_text() == worst
    before, after = (line for line in figure.axes[0].lines if line.get_marker() != "None")
    assert before.get_xdata()[0] == facts.balance.statistics[worst].before and after.get_xdata()[0] == facts.balance.statistics[worst].after
    assert balance(facts.evolve(balance=None)) is None

"""Figures of exchange rates."""

from __future__ import annotations

from flows.report.value_figures import SHOWN, exchange_rates, golden_loss_by_rate
from tasks.stages import value
from tests.flows.report.runs import MANY, make_facts


def facts_of(names: list[str], **changes: object) -> value.Facts:
    return value.Facts.model_validate(make_facts(names)["value"] | changes)


def test_every_source_has_its_rate_and_worth() -> None:
    figure = exchange_rates(facts_of(["human", "a", "b"]))
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes.texts] == ["≙ 360 labels"] * 2
    assert [list(line.get_xdata()) for line in axes.lines] == [[0.1, 0.55], [0.3]] * 2


def test_profiles_stop_at_the_palette() -> None:
    axes = golden_loss_by_rate(facts_of(MANY)).axes[0]
    assert len(axes.lines) == SHOWN + 1 and axes.lines[-1].get_label() == "golden alone"
    assert list(axes.lines[0].get_xdata()) == [0, 0.03, 0.1, 0.3, 1]


def test_without_rates_there_is_no_figure() -> None:
    bare = facts_of(["human", "a"], sources={"a": {"n": 3}})
    assert exchange_rates(bare) is None and golden_loss_by_rate(bare) is None

"""Figures of the data: their order and labels."""

from __future__ import annotations

from flows.report.data_figures import quarantine, responses
from tasks.stages import ingest
from tests.flows.report.runs import make_facts


def labels(figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_the_largest_source_and_the_commonest_reason_come_first() -> None:
    facts = ingest.Facts.model_validate(make_facts(["human", "a", "b", "c"])["ingest"])
    by_size = sorted(facts.sources, key=lambda name: -facts.sources[name].responses)
    assert labels(responses(facts)) == by_size
    assert labels(quarantine(facts)) == ["empty_response", "nan_reward", "duplicate_id"]


def test_without_bad_rows_there_is_no_figure_of_them() -> None:
    facts = ingest.Facts.model_validate(make_facts(["human"])["ingest"] | {"bad_by_reason": {}})
    assert quarantine(facts) is None

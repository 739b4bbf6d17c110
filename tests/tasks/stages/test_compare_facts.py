"""Facts of the comparison: the form in which they are stored, and those of earlier releases."""

from __future__ import annotations

from tasks.stages._compare_facts import Facts
from tests.tasks import facts


def test_stored_facts_come_back_unchanged() -> None:
    written = {"judge": "gold", "wins": {"start": facts.wins(0.6)}, "lifts": {"erm": facts.interval(0.05)}}
    read = Facts.model_validate(written)
    assert Facts.model_validate(read.dump()) == read and read.lifts["erm"].value == 0.05


def test_results_before_pairs_of_near_equal_length_are_readable_and_not_called_extrapolated() -> None:
    old = {name: value for name, value in facts.wins(0.6).items() if name not in ("near_length", "longer")}
    read = Facts.model_validate({"judge": "gold", "wins": {"start": old}})
    assert read.wins["start"].near_length is None and not read.wins["start"].is_extrapolated and read.lifts == {}

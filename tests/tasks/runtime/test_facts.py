"""Facts: what was written comes back unchanged, and what is unknown is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasks.runtime.facts import AnyFacts, Facts, RequestFacts, Stop


class Counted(Facts):
    rows: int
    late: float | None = None


@pytest.mark.parametrize(
    "written",
    [
        {"rows": 1},
        {"rows": 1, "late": None},
        {"rows": 1, "warnings": ["slow"], "stop": {"message": "too few", "hint": "give more"}},
    ],
)
def test_parsing_and_dumping_changes_nothing(written: dict) -> None:
    assert Counted.model_validate(written).dump() == written


def test_an_unknown_fact_is_refused_and_toy_stages_take_any() -> None:
    with pytest.raises(ValidationError, match="row"):
        Counted.model_validate({"rows": 1, "row": 2})
    assert AnyFacts.model_validate({"anything": [1]}).dump() == {"anything": [1]}


def test_a_stop_needs_a_next_step() -> None:
    with pytest.raises(ValidationError, match="hint"):
        Stop.model_validate({"message": "too few"})


def test_a_number_that_is_not_finite_stays_visible() -> None:
    assert Counted(rows=1, late=float("nan")).model_dump_json() == '{"warnings":[],"stop":null,"rows":1,"late":NaN}'


def test_facts_of_a_stage_without_a_server_are_empty() -> None:
    facts = RequestFacts()
    assert facts.dump() == {} and (facts.requests, facts.retries, facts.reused, facts.answers_per_second) == (0, 0, 0, None)

"""Facts of the evaluation: the form in which they are stored, and the parts of them that are missing."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasks.stages._evaluate_facts import ByModel, Facts, Lift
from tests.tasks import facts


def test_stored_facts_come_back_unchanged() -> None:
    written = facts.evaluation()
    assert Facts.model_validate(written).dump() == Facts.model_validate(Facts.model_validate(written).dump()).dump()
    assert Facts.model_validate(written).dump()["parts"] == written["parts"]


def test_results_before_labels_and_unchecked_rules_are_readable() -> None:
    written = facts.evaluation()
    written["gate"].pop("unchecked")
    read = Facts.model_validate(written)
    assert read.labels is None and read.gate.unchecked == {} and "labels" not in read.dump()


def test_broken_rules_are_those_that_did_not_pass() -> None:
    assert facts.PASSED_GATE.broken == []
    assert [rule.name for rule in facts.FAILED_GATE.broken] == ["kl"]


def test_an_outcome_is_failed_only_by_a_broken_rule() -> None:
    assert [gate.outcome for gate in (facts.PASSED_GATE, facts.FAILED_GATE, facts.UNDECIDED_GATE)] == ["passed", "failed", "cannot tell"]
    assert facts.UNDECIDED_GATE.broken == [] and [rule.reason for rule in facts.UNDECIDED_GATE.uncertain] == [
        "win_rate: win rate above 0.5: 0.4"
    ]


def test_models_and_differences_without_a_number_are_left_out() -> None:
    by_model = ByModel.model_validate({"policy": facts.interval(0.6), "twin": None})
    assert by_model.measured() == {"policy": by_model.policy}
    assert Lift().over_start() == {} and Lift.model_validate({"start_golden": facts.interval(0.1)}).over_start().keys() == {"golden"}


def test_the_one_twin_of_earlier_releases_was_erm() -> None:
    assert ByModel.model_validate({"policy": facts.interval(0.6), "twin": facts.interval(0.5)}).measured().keys() == {"policy", "erm"}
    assert (
        Lift.model_validate({"twin_all": facts.interval(0.1)}).twins.keys() == {"erm"}
        and Lift.model_validate({"twin_all": None}).twins == {}
    )


def test_a_measure_that_is_unknown_is_refused() -> None:
    with pytest.raises(ValidationError, match="by_length"):
        Facts.model_validate(facts.evaluation(by_length={}))

"""Facts that every training stage has."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasks.training.facts import Curve, TrainingFacts
from tasks.training.report import TrainingReport

CURVE = {"loss": [0.7, 0.6], "lambda": [1.0, 0.5]}
REPORT = TrainingReport(steps=2, planned_steps=2, resumed_from=None, warnings=["slow"], curve=CURVE, records=80, memory=None)


def test_facts_of_a_fit_report() -> None:
    facts = TrainingFacts.of(REPORT, 80)
    assert facts.curve.step == [0, 1] and facts.curve.measures == {"loss": [0.7, 0.6], "lambda": [1.0, 0.5]}
    assert facts.dump() == {
        "records": 80,
        "steps": 2,
        "resumed_from": None,
        "warnings": ["slow"],
        "curve": {"step": [0, 1], "loss": [0.7, 0.6], "lambda": [1.0, 0.5]},
    }


def test_a_stage_adds_its_own_fields_and_replaces_the_warnings() -> None:
    facts = TrainingFacts.of(REPORT, 80, loss={"name": "dpo", "beta": 0.1, "pairs": "all"}, objective=None, warnings=[])
    assert facts.loss is not None and facts.loss.beta == 0.1
    written = facts.dump()
    assert written["loss"] == {"name": "dpo", "beta": 0.1, "pairs": "all"} and written["objective"] is None and written["warnings"] == []
    assert "heaviest" not in written, "a field that the stage did not set"
    assert TrainingFacts.model_validate(written).dump() == written


def test_a_curve_of_something_else_is_refused() -> None:
    with pytest.raises(ValidationError, match="loss"):
        Curve.model_validate({"step": [0], "loss": "0.7"})
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        TrainingFacts.of(REPORT, 80, accuracy=1.0)

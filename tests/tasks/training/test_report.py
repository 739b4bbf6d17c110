"""The report of a training, as it goes from the workers to the stage."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.training.facts import TrainingFacts
from tasks.training.report import TrainingReport

WRITTEN: dict[str, Any] = {
    "steps": 2,
    "planned_steps": 3,
    "resumed_from": None,
    "curve": {"loss": [0.7, 0.6]},
    "records": 80,
    "warnings": ["slow"],
    "memory": 3_000_000_000,
}


def test_a_report_comes_back_from_json() -> None:
    report = TrainingReport.model_validate(WRITTEN)
    assert TrainingReport.model_validate_json(report.model_dump_json()) == report and report.model_dump() == WRITTEN | {"files": []}


def test_facts_of_the_stage_are_made_of_it() -> None:
    report = TrainingReport.model_validate(WRITTEN)
    facts = TrainingFacts.of(report, report.records)
    assert (facts.steps, facts.records, facts.warnings, facts.curve.measures) == (2, 80, ["slow"], {"loss": [0.7, 0.6]})


@pytest.mark.parametrize("missing", WRITTEN)
def test_every_field_is_needed(missing: str) -> None:
    with pytest.raises(ValidationError, match=missing):
        TrainingReport.model_validate({name: value for name, value in WRITTEN.items() if name != missing})

"""Facts of drift: the part of a measure that chance does not explain, and the form in which they are stored."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.stages._drift_facts import Facts, Rule

REF = {"stage": "classify", "digest": "a" * 64}
RULE: dict[str, Any] = {
    "name": "length",
    "source": "bot",
    "value": 0.3,
    "chance": 0.1,
    "refit_at": 0.1,
    "refuse_at": None,
    "verdict": "refit",
    "message": "moved",
}
WRITTEN: dict[str, Any] = {
    "decision": "refit",
    "reason": "length of bot moved",
    "keep": REF,
    "previous": {"records": {"stage": "ingest", "digest": "b" * 64}, "classify": REF, "calibrate": None},
    "sources": {"bot": {"responses": {"before": 3, "now": 5, "new": 2}, "length": {"before": None, "new": {"0.5": 3.0}, "ks": None}}},
    "rules": [RULE],
}


def test_only_what_chance_does_not_explain_counts() -> None:
    assert Rule.model_validate(RULE).excess == pytest.approx(0.2)
    for name in ("value", "chance"):
        assert Rule.model_validate({**RULE, name: None, "verdict": "not judged"}).excess == -math.inf


def test_stored_facts_come_back_unchanged() -> None:
    assert Facts.model_validate(WRITTEN).dump() == WRITTEN


@pytest.mark.parametrize(("name", "value"), [("decision", "ignore"), ("rules", [{**RULE, "verdict": "bad"}]), ("source", {})])
def test_unknown_values_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Facts.model_validate({**WRITTEN, name: value})

"""Facts of what labels are worth, in the form in which they are stored."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasks.stages._value_facts import Facts

WRITTEN = {
    "golden_labels": 120,
    "golden_prompts": 118,
    "sources": {"bot": {"n": 300, "rate": {"value": 0.3, "low": 0.0, "high": 1.0, "n": 118}, "worth": 90.0, "verdict": "cannot tell"}},
}


def test_stored_facts_come_back_unchanged() -> None:
    facts = Facts.model_validate(WRITTEN)
    assert facts.dump() == WRITTEN
    assert facts.sources["bot"].agreement is None and facts.losses == {}


def test_a_verdict_is_one_of_four() -> None:
    with pytest.raises(ValidationError, match="verdict"):
        Facts.model_validate(WRITTEN | {"sources": {"bot": {"n": 1, "verdict": "maybe"}}})

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from tasks.stages._race_facts import Facts

GIVEN = {
    "standings": [{"name": "erm", "loss": 0.6, "excess": 0.0, "error": None, "share": 1.0}],
    "reason": "erm (100% of the evidence)",
    "decided": True,
    "objective": {"name": "reweight"},
    "golden_prompts": 40,
    "pairs": 100,
    "ridge": 3.0,
    "mean_weight": {"golden": 1.0, "lm": 0.3},
}


def test_facts_survive_json() -> None:
    facts = Facts.model_validate(GIVEN)
    assert Facts.model_validate(json.loads(json.dumps(facts.dump()))) == facts


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(ValidationError, match="unknown objective 'doras'"):
        Facts.model_validate(GIVEN | {"objective": {"name": "doras"}})

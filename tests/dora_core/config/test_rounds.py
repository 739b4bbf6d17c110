"""Settings of rounds and of drift: a refit comes before a refusal."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dora_core.config.rounds import DriftConfig, GuardConfig, RoundsConfig


@pytest.mark.parametrize("rule", ["auc_drop", "share_shift", "length_shift"])
def test_a_refusal_below_the_refit_is_refused(rule: str) -> None:
    with pytest.raises(ValidationError, match=f"refuse_{rule}=0.1 must not be below refit_{rule}=0.2"):
        DriftConfig(**{f"refit_{rule}": 0.2, f"refuse_{rule}": 0.1})
    assert getattr(DriftConfig(**{f"refit_{rule}": 0.2, f"refuse_{rule}": 0.2}), f"refuse_{rule}") == 0.2
    assert getattr(DriftConfig(**{f"refit_{rule}": None, f"refuse_{rule}": 0.1}), f"refit_{rule}") is None, "null disables a rule"


def test_every_guard_rail_can_be_disabled() -> None:
    rails = [name for name in GuardConfig.model_fields if name != "min_source_prompts"]
    assert all(getattr(GuardConfig(**{name: None}), name) is None for name in rails)


def test_rounds_are_counted_from_one() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        RoundsConfig(rounds=0)

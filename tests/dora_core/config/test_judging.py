"""Judges are told apart by `kind`."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from dora_core.config.judging import GoldJudge, ImplicitJudge, Judge, LLMJudge, RewardModelJudge

JUDGES: TypeAdapter[Any] = TypeAdapter(Judge)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"kind": "gold"}, GoldJudge),
        ({"kind": "reward_model"}, RewardModelJudge),
        ({"kind": "implicit"}, ImplicitJudge),
        ({"kind": "llm", "model": "judge-8b"}, LLMJudge),
    ],
)
def test_kind_selects_the_judge_and_survives_json(settings: dict[str, Any], kind: type) -> None:
    judge = JUDGES.validate_python(settings)
    assert type(judge) is kind
    assert JUDGES.validate_json(JUDGES.dump_json(judge)) == judge


def test_mistakes_are_named() -> None:
    with pytest.raises(ValidationError, match="'gold', 'reward_model', 'implicit', 'llm'"):
        JUDGES.validate_python({"kind": "oracle"})
    with pytest.raises(ValidationError, match="model\n  Field required"):
        JUDGES.validate_python({"kind": "llm"})


def test_a_reward_model_is_trained_longer_than_a_policy() -> None:
    assert RewardModelJudge().training.optimization.epochs == 4.0

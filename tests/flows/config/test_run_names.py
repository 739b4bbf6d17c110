"""Names of flow runs."""

from __future__ import annotations

from typing import Any

import pytest

from dora_core.objectives.settings import ObjectiveConfig
from flows.config.models import RealignConfig, SelfTrainConfig
from flows.config.run_names import data_of, name_of_calibration, name_of_realignment, name_of_rounds, strength_of

DATA = {"train": [{"path": "/data/human.jsonl"}, {"path": "s3://b/more.parquet"}]}


def config(**sections: Any) -> RealignConfig:
    return RealignConfig.model_validate({"project": "demo", "data": DATA} | sections)


def test_a_name_says_project_data_loss_and_objective() -> None:
    assert (
        name_of_realignment(config(align={"objective": {"name": "dora", "lambda": 1.0}})) == "demo · human.jsonl + 1 more · dpo · dora λ=1"
    )
    assert name_of_realignment(config(align={"objective": {"name": "erm"}})).endswith(" · dpo · erm")
    assert name_of_calibration(config()) == "demo · human.jsonl + 1 more · calibrate · mixture"
    assert data_of(config(data={"train": DATA["train"][:1]})) == "human.jsonl"


def test_a_name_of_rounds_says_how_many_and_another_strategy() -> None:
    def name(**rounds: Any) -> str:
        return name_of_rounds(
            SelfTrainConfig.model_validate({"project": "demo", "data": DATA, "rounds": rounds, "evaluate": {"twins": []}})
        )

    assert name(rounds=1).endswith(" · 1 round") and name(rounds=3).endswith(" · 3 rounds")
    assert name(rounds=2, strategy="raft").endswith(" · raft · 2 rounds")


@pytest.mark.parametrize(
    ("objective", "shown"),
    [
        ({"name": "dora", "lambda": 0.5}, "0.5"),
        ({"name": "dora", "lambda": "auto"}, "auto"),
        ({"name": "dora", "lambda": {"start": 3.0, "end": 0.3}}, "3→0.3"),
        ({"name": "erm"}, ""),
    ],
)
def test_the_strength_of_an_objective(objective: dict[str, Any], shown: str) -> None:
    assert strength_of(ObjectiveConfig.model_validate(objective)) == shown

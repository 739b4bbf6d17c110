"""Settings of the objective: known names, valid λ, and the keys of configurations."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from dora_core.objectives import OBJECTIVES, LambdaSchedule, ObjectiveConfig


def test_unknown_objective_names_the_nearest_in_a_configuration() -> None:
    with pytest.raises(ValidationError, match="unknown objective 'doora'; did you mean 'dora'"):
        ObjectiveConfig(name="doora")


def test_lambda_is_checked() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        ObjectiveConfig(lam=0.0)
    with pytest.raises(ValidationError, match="auto needs scope global"):
        ObjectiveConfig(lam="auto", scope="micro")
    with pytest.raises(ValidationError, match="greater than 0"):
        LambdaSchedule(start=1.0, end=0.0)
    assert ObjectiveConfig(name="erm", scope="micro").lam == "auto", "erm has no λ that would need the global scope"


def test_the_key_of_a_configuration_is_lambda() -> None:
    config = ObjectiveConfig.model_validate({"lambda": {"start": 3, "end": 0.3}})
    assert config.lam == LambdaSchedule(start=3, end=0.3, shape="log")
    assert ObjectiveConfig.model_validate_json(config.model_dump_json()) == config
    assert "lambda" in config.model_dump()


def test_the_schema_lists_every_registered_name() -> None:
    assert TypeAdapter(ObjectiveConfig).json_schema()["properties"]["name"]["enum"] == list(OBJECTIVES)

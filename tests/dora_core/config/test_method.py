"""Settings of the method: every field is described and bounded, and contradictions are refused with the rule."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from dora_core.config import execution, judging, method, rounds
from dora_core.strict_model import StrictModel

MODELS = [
    model
    for module in (method, rounds, judging, execution)
    for _, model in inspect.getmembers(module, inspect.isclass)
    if issubclass(model, StrictModel) and model.__module__ == module.__name__
]
REVISION = "0123456789abcdef0123456789abcdef01234567"


def settings_of(model: type[BaseModel]) -> list[tuple[str, dict[str, Any]]]:
    return list(model.model_json_schema()["properties"].items())


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_every_setting_is_described(model: type[BaseModel]) -> None:
    assert model.__doc__
    assert [name for name, field in settings_of(model) if not field.get("description") and name != "seed"] == []


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_every_number_is_bounded_below(model: type[BaseModel]) -> None:
    for name, field in settings_of(model):
        for kind in field.get("anyOf", [field]):
            if kind.get("type") in ("integer", "number") and name not in {"temper"}:  # temper: checked by the model as a whole
                assert "minimum" in kind or "exclusiveMinimum" in kind, f"{model.__name__}.{name}"


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_an_unknown_key_is_an_error(model: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        model.model_validate({"no_such_key": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 48, "heads": 5}, "heads=5 must divide hidden_size=48"),
        ({"source": "org/model", "trust_remote_code": True}, "trust_remote_code needs `revision`"),
        ({"revision": "main"}, "should match pattern"),
    ],
)
def test_models_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        method.ModelConfig(**settings)


def test_the_embedded_model_is_recognised() -> None:
    assert method.ModelConfig().is_tiny
    assert not method.ModelConfig(source="org/model", revision=REVISION, trust_remote_code=True).is_tiny


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temper": 1.5}, r"temper=1.5 must lie in \[0, 1\] or be 'auto'"),
        ({"shares": {"human": 0.0, "a": 1.0}}, r"shares must lie in \(0, 1\], got {'human': 0.0}"),
        ({"shares": {"human": 0.5, "a": 0.4}}, "shares must sum to 1, got 0.900000"),
    ],
)
def test_calibration_is_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        method.CalibrationConfig(**settings)


def test_the_start_of_a_policy_is_no_part_of_the_model() -> None:
    policy = method.PolicyConfig(hidden_size=64, start="champion", replay=0.5)
    assert type(policy.model) is method.ModelConfig and policy.model == method.ModelConfig(hidden_size=64)
    assert method.PolicyConfig.model_validate(method.ModelConfig(hidden_size=64)) == method.PolicyConfig(hidden_size=64)
    assert method.PolicyConfig(hidden_size=64).model_dump() == method.ModelConfig(hidden_size=64).model_dump(), (
        "digests of before are found again"
    )

"""The base class of settings and records: frozen; unknown keys, wrong defaults and invalid changes are errors."""

from __future__ import annotations

import re

import pytest
from pydantic import ConfigDict, Field, ValidationError

from dora_core.config.method import OptimizationConfig
from dora_core.objectives.settings import ObjectiveConfig
from dora_core.strict_model import ENVIRONMENT_PATTERN, NAME_PATTERN, REVISION_PATTERN, StrictModel


class Inner(StrictModel):
    size: int = Field(1, ge=1)


class Outer(StrictModel):
    inner: Inner = Field(default_factory=Inner)
    share: float = Field(0.5, ge=0, le=1)


class Open(StrictModel):
    model_config = ConfigDict(extra="allow")

    name: str


def test_evolve_changes_the_named_fields_alone() -> None:
    before = Outer(inner=Inner(size=3))
    after = before.evolve(share=0.25)
    assert (after, before.share) == (Outer(inner=Inner(size=3), share=0.25), 0.5)
    assert after.inner is before.inner


@pytest.mark.parametrize("changes", [{"share": 2.0}, {"inner": {"size": 0}}, {"shares": 0.5}])
def test_evolve_validates(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Outer().evolve(**changes)


def test_evolve_keeps_what_counts_as_unset() -> None:
    assert Outer().evolve(share=0.1).model_fields_set == {"share"}


def test_evolve_takes_field_names_where_the_key_has_another() -> None:
    objective = ObjectiveConfig(name="dora", lam=1.0).evolve(lam=2.0)
    assert (objective.lam, objective.model_dump(by_alias=True)["lambda"]) == (2.0, 2.0)
    with pytest.raises(ValidationError):
        objective.evolve(lam=-1.0)


def test_evolve_keeps_keys_that_the_model_does_not_know_where_it_allows_them() -> None:
    record = Open.model_validate({"name": "a", "later": 1}).evolve(name="b")
    assert record.model_dump() == {"name": "b", "later": 1}


def test_evolve_runs_the_checks_between_fields() -> None:
    with pytest.raises(ValidationError):
        OptimizationConfig().evolve(epochs=-1.0)


class Settings(StrictModel):
    rate: float = Field(0.5, gt=0)


def test_unknown_keys_are_errors() -> None:
    with pytest.raises(ValidationError, match="rte\n  Extra inputs are not permitted"):
        Settings.model_validate({"rte": 1.0})


def test_settings_are_frozen_and_hashable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().rate = 1.0
    assert hash(Settings()) == hash(Settings())


def test_defaults_are_validated() -> None:
    class Wrong(StrictModel):
        rate: float = Field(-1.0, gt=0)

    with pytest.raises(ValidationError, match="greater than 0"):
        Wrong()


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (NAME_PATTERN, ["a", "helpful-v2", "0.1_b"], ["", "A", "-a", "a/b", "../a", "a" * 65]),
        (REVISION_PATTERN, ["0123456789abcdef" * 2 + "01234567"], ["main", "0123456", "g" * 40]),
        (ENVIRONMENT_PATTERN, ["OPENAI_API_KEY", "_X1"], ["key", "1X", "sk-abc"]),
    ],
)
def test_patterns(pattern: str, good: list[str], bad: list[str]) -> None:
    assert all(re.search(pattern, name) for name in good)
    assert not any(re.search(pattern, name) for name in bad)

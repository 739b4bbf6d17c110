"""Settings are frozen, and unknown keys and wrong defaults are errors."""

from __future__ import annotations

import re

import pytest
from pydantic import Field, ValidationError

from dora_core.strict_model import ENVIRONMENT_PATTERN, NAME_PATTERN, REVISION_PATTERN, StrictModel


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

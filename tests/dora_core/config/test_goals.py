"""Settings of goals and of weights by prompt."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dora_core.config.adapter import Adapter, paths_of
from dora_core.config.data import DataConfig
from dora_core.config.goals import Goal, placeholders

TWO = {"shape": "ab", "label": {"scores": [{"a": "h_a", "b": "h_b"}, {"a": "s_a", "b": "s_b"}]}}
SAY = "Helpfulness {w1}, harmlessness {w2}."


def label(**keys: Any) -> dict[str, Any]:
    return TWO | {"label": TWO["label"] | keys}


def test_a_goal_is_said_with_its_decimals() -> None:
    assert Goal(best=10, text="Aim at {goal}.", digits=0).said(7.6) == "Aim at 8."
    assert placeholders("{{no}} {goal}") == ["goal"]


@pytest.mark.parametrize("text", ["no goal", "{goal} and {goal}", "{goal} {other}", "{} {goal}"])
def test_a_goal_s_text_needs_its_placeholder_once(text: str) -> None:
    with pytest.raises(ValidationError, match=r"needs {goal} once|braces without a name"):
        Goal(best=1, text=text)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (label(), "2 scores need `weights`"),
        (label(weights={"sampled": 1}), "need `say`"),
        (label(weights={"sampled": 1}, say="Helpfulness {w1}."), "needs each of {w1}, {w2}"),
        (label(weights=[1, 1], say=SAY), "the same for all"),
        (label(weights={"sampled": 0}, say=SAY), "greater than 0"),
        ({"shape": "list", "label": {"scores": ["s"], "weights": {"column": "w"}, "say": "{w1}"}}, "at least two scores"),
        ({"shape": "list", "label": {"scores": ["s"], "say": "{w1}"}}, "give `weights"),
        ({"shape": "rows", "label": {"scores": ["s", "t"], "weights": {"column": "w"}, "say": SAY}}, "shape is rows"),
    ],
)
def test_weights_by_prompt_are_checked(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Adapter.model_validate(keys)


def test_the_column_of_weights_is_among_the_paths() -> None:
    adapter = Adapter.model_validate(label(weights={"column": "w"}, say=SAY))
    assert ("label.weights", "w") in list(paths_of(adapter))
    assert Adapter.model_validate(adapter.model_dump(exclude_unset=True)) == adapter


def test_configurations_without_goals_have_the_dump_of_earlier_releases() -> None:
    assert "goal" not in DataConfig.model_validate({"train": [{"path": "x"}]}).model_dump()
    assert "say" not in Adapter.model_validate(label(weights=[1, 2])).model_dump()["label"]

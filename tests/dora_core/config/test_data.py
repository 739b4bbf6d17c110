"""Inputs: an adapter with a place; old configurations keep their meaning; settings for all inputs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dora_core.config.adapter import Adapter
from dora_core.config.data import DataConfig, DataSource


def test_data_needs_an_input() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        DataConfig(train=[])
    assert DataConfig(train=[DataSource(path="a.parquet")]).golden_sources == ["human"]


def test_an_input_is_a_place_and_an_adapter() -> None:
    source = DataSource(path="a.jsonl", source="m", columns={"prompt": "q"}, label={"scores": ["s"]}, weight=2)
    assert source.adapter == Adapter(columns={"prompt": "q"}, label={"scores": ["s"]})
    assert source.adapter.model_fields_set == {"columns", "label"}, "what was not written stays open to a preset"


def test_tools_are_kept_in_every_input_that_does_not_say_otherwise() -> None:
    inputs = [{"path": "a", "context": {"tools": "tools"}, "messages": {"tools": "keep"}}, {"path": "b", "messages": {"tools": "refuse"}}]
    data = DataConfig(train=[*inputs, {"path": "c"}, DataSource(path="d")], golden=[{"path": "e"}], tools="keep")
    assert [source.messages.tools for source in [*data.train, *data.golden]] == ["keep", "refuse", "keep", "keep", "keep"]


@pytest.mark.parametrize("change", [{"weight": 0}, {"repeat": 0}, {"max_rows": 0}, {"source": "with space"}, {"path": ""}])
def test_settings_of_an_input_are_bounded(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DataSource.model_validate({"path": "a"} | change)

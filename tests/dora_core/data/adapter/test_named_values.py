"""Names of outcomes by their values."""

from __future__ import annotations

from dora_core.data.adapter.named_values import NamedValues


def test_values_are_compared_as_value_and_as_text():
    values = NamedValues({"a": ["Left", 1], "b": ["right"], "tie": [None]})
    assert [values.of(value) for value in ("left ", 1, "1", None, 7, [1])] == ["a", "a", "a", "tie", None, None]
    assert values.allowed() == "a: 'Left', 1; b: 'right'; tie: None"

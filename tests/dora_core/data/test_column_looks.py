"""What columns may hold, by name and by values."""

from __future__ import annotations

import pytest

from dora_core.data.column_looks import kind_by_name, kind_by_values, role_and_text


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("table_schema", "context"),
        ("chat_history", "context"),
        ("source_text", "context"),
        ("Prompt", "prompt"),
        ("prompt", None),  # the canonical name: read, or its user maps another column
        ("hard_negatives", "further response"),
        ("all_responses", "further response"),
        ("title", None),
        ("schema_version", None),
    ],
)
def test_kind_by_name(name, kind):
    assert kind_by_name(name) == kind


def test_kind_by_values():
    assert kind_by_values(["model_a", "tie"]) == "winner"
    assert kind_by_values(["train", "test"]) == "split"
    assert kind_by_values([[{"from": "human", "value": "q"}]]) == "messages"
    assert kind_by_values(["some text"]) is None


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ([{"role": "user", "parts": [{"text": "q"}]}], ("role", "parts")),
        ({"speaker": "A", "text": "q"}, ("speaker", "text")),
        ([{"role": "user", "content": "q"}], None),  # no dialect of its own
        ([{"text": "a", "score": 1}], None),
        ("text", None),
        ([], None),
    ],
)
def test_keys_of_a_dialect(value, keys):
    assert role_and_text(value) == keys

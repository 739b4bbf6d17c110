"""Lists and objects written as text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_core.data.adapter.structured_text import Unparsable, looks_structured, parse_structure

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
).filter(lambda value: isinstance(value, list | dict))


@given(JSON)
def test_json_and_python_text_give_the_value_back(value):
    assert parse_structure(json.dumps(value)) == value
    assert parse_structure(f" {value!r}\n") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1. 2.5 -3e1]", [1.0, 2.5, -30.0]),
        (
            "[{'role': 'user', 'content': 'a\\n b'}\n {'role': 'assistant', 'content': 'b'}]",
            [{"role": "user", "content": "a\n b"}, {"role": "assistant", "content": "b"}],
        ),
        ("('a', 'b')", ["a", "b"]),
        ("""["it's", 'a "b" c']""", ["it's", 'a "b" c']),
        ("['a', 'b' ]", ["a", "b"]),
    ],
)
def test_other_prints(text, value):
    assert parse_structure(text) == value


@pytest.mark.parametrize(
    "text", ["['a' 'b']", "[{'a': array([1])}]", "[open('x')]", "[1, 2", "{1, 2", "[" * 100_000, "[a b]", "['a'\n 'b']", "{1}"]
)
def test_text_whose_meaning_is_open_is_refused(text):
    with pytest.raises(Unparsable):
        parse_structure(text)


def test_only_brackets_look_structured():
    assert looks_structured(" [1] ") and looks_structured("{}\n") and not looks_structured("[1") and not looks_structured("a []")

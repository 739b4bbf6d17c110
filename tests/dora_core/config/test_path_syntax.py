"""Syntax of paths: what they parse to, and positions in errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_core.config.path_syntax import Each, parse_path, quote_key


def plain(text):
    return [["[]" if isinstance(step, Each) else step for step in steps] for steps in parse_path(text)]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("info.post", [["info", "post"]]),
        ("summaries[].text", [["summaries", "[]", "text"]]),
        ("annotations[0].result[-1].value.selected", [["annotations", 0, "result", -1, "value", "selected"]]),
        ("chosen-rating", [["chosen-rating"]]),
        ('"a.b".c', [["a.b", "c"]]),
        ("'it[0]'[0]", [["it[0]", 0]]),
        ("post|info.article", [["post"], ["info", "article"]]),
        ("two words[]", [["two words", "[]"]]),
        ("a[][]", [["a", "[]", "[]"]]),
    ],
)
def test_path_parses_to_steps(text, steps):
    assert plain(text) == steps


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "ends without a key"),
        ("a.", "ends without a key"),
        ("a..b", "missing before '.' at character 2"),
        ("[0]", "follows no key"),
        ("a[x]", r"unexpected '\[' at character 1"),
        ("a]", "unexpected ']' at character 1"),
        ("a[0]b", "a '.' is missing at character 4"),
        ('""', "an empty key"),
        ("|a", "missing before '|'"),
        ('a."b', "unexpected"),
    ],
)
def test_error_names_the_position(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse_path(text)


@given(st.text(min_size=1).filter(lambda key: not ('"' in key and "'" in key)))
def test_quoted_key_is_read_back(key):
    assert parse_path(quote_key(key)) == ((key,),)
    assert parse_path(f"root.{quote_key(key)}[0]")[0][1] == key

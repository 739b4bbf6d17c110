"""The incremental scanner against ``json.loads``, with chunks of a few bytes."""

from __future__ import annotations

import io
import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dora_core.data.formats import _json_scanner
from dora_core.data.formats._json_scanner import Scanner
from dora_core.data.problems import Problem
from dora_core.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def items(text: bytes, chunk: int = 1 << 16) -> list[Any]:
    with mock.patch.object(_json_scanner, "CHUNK_BYTES", chunk):
        scanner = Scanner(io.BytesIO(text), "a.json")
        found = list(scanner.items())
        scanner.end()
        return found


@settings(max_examples=300, deadline=None)
@given(values=st.lists(VALUES, max_size=5), chunk=st.integers(1, 40), indent=st.none() | st.integers(0, 2), ascii=st.booleans())
def test_an_array_gives_its_values_whatever_the_chunks(values: list[Any], chunk: int, indent: int | None, ascii: bool) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    assert items(text, chunk) == json.loads(text.decode("utf-8", "surrogatepass"))


@settings(max_examples=300, deadline=None)
@given(values=st.lists(VALUES, min_size=1, max_size=3), cut=st.integers(1, 60), flip=st.integers(0, 255), place=st.integers(0, 200))
def test_damage_gives_the_same_values_as_json_or_a_refusal(values: list[Any], cut: int, flip: int, place: int) -> None:
    whole = json.dumps(values).encode()
    for text in (whole[:-cut], whole[: place % len(whole)] + bytes([flip]) + whole[place % len(whole) + 1 :]):
        try:
            found = items(text, 7)
        except DataError as error:
            assert "a.json: line 1" in error.message
        else:
            assert any(isinstance(v, Problem) for v in found) or found == json.loads(text.decode("utf-8-sig", "surrogateescape"))


def test_a_flaw_costs_one_value() -> None:
    found = items(b'[1, {"a": 1, "a": 2}, "\xff", ' + b"9" * 5000 + b', {"b": 2}]')
    assert [v.detail if isinstance(v, Problem) else v for v in found] == [
        1,
        "an object has the same key twice",
        "not UTF-8",
        "an integer has too many digits",
        {"b": 2},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[1,\n 2", "line 2, column 3: expected , or ], found the end of the file"),
        (b"[1]\n[2]", "line 2, column 1: text follows the end of the document"),
        (b"[" * 100_000, "nested too deeply"),
        (b'["a\nb"]', "Invalid control character"),
    ],
)
def test_mistakes_name_line_and_column(text: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        items(text)
    assert message in caught.value.message


def test_a_value_without_end_is_refused_before_memory_is_full() -> None:
    with mock.patch.object(_json_scanner, "MOST_CHARS", 1000), pytest.raises(DataError, match="a value is longer than 1000 characters"):
        items(b'["' + b"x" * 5000 + b'"]', 100)

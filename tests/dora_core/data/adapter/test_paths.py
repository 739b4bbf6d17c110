"""Values at paths, against values written out by hand."""

from __future__ import annotations

import pytest

from dora_core.data.adapter.paths import CompiledPath, Missing

ROW = {
    "info": {"post": "p", "none": None, "a.b": 1},
    "items": [{"t": 1, "in": [{"x": 1}, {"x": 2}]}, {"t": 2, "in": [{"x": 3}]}],
    "ragged": [{"t": 1}, {"u": 2}],
    "flat.name": 7,
    "json": '{"post": [1, {"k": "v"}]}',
    "repr": "[{'x': 1}, {'x': 2}]",
    "null": None,
    "text": "hello",
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("text", "hello"),
        ("info.post", "p"),
        ("info.none", None),
        ('info."a.b"', 1),
        ("items[].t", [1, 2]),
        ("items.t", [1, 2]),
        ("items[0].in[-1].x", 2),
        ("items[].in[].x", [1, 2, 3]),
        ("items[].in[0].x", [1, 3]),
        ("ragged[].t", [1, None]),
        ("flat.name", 7),
        ("json.post[1].k", "v"),
        ("repr[].x", [1, 2]),
        ("null.deep[0].deeper", None),
        ("info.none|info.post", "p"),
        ("nothing|text", "hello"),
        ("info.none|null", None),
    ],
)
def test_value_at_a_path(path, value):
    assert CompiledPath(path, ROW).get(ROW) == value


@pytest.mark.parametrize(
    ("path", "place", "detail", "absent"),
    [
        ("nothing", "nothing", "the row has no key nothing; keys there: info", True),
        ("info.pots", "info.pots", 'info has no key pots; keys there: post, none, "a.b"', True),
        ("text.key", "text", "is text, expected a struct with the key key", False),
        ("info[]", "info", "is a struct with the keys post, none, a.b, expected a list", False),
        ("items[5]", "items[5]", "items has 2 elements", True),
        ("items[].nope", "items[0].nope", "items[0] has no key nope; keys there: t, in", True),
        ("text[].x", "text", "is text, expected a list", False),
    ],
)
def test_path_that_leads_nowhere_says_where_and_what_is_there(path, place, detail, absent):
    found = CompiledPath(path, ROW).get(ROW)
    assert isinstance(found, Missing)
    assert (found.place, found.absent) == (place, absent) and found.detail.startswith(detail)


def test_elements_have_the_place_of_their_text():
    assert [CompiledPath("a[].text").element(i) for i in (1, 0, 2000)] == ["a[1].text", "a[0].text", "a[2000].text"]
    assert CompiledPath("responses").element(3) == "responses[3]"


def test_roots_are_the_columns():
    assert CompiledPath("a.b|c[0]|d").roots == ("a", "c", "d")
    assert CompiledPath("a.b", {"a.b"}).roots == ("a.b",)

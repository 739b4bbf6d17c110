"""The driver: from rows to canonical rows or problems, the shape by columns, and the user's names of fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_core.config.adapter import Adapter
from dora_core.data.adapter.driver import RowAdapter, shape_by_columns
from dora_core.errors import ConfigError
from tests.dora_core.data.adapter.reading import assert_case, assert_expansion, few, read_rows
from tests.dora_core.data.cases import CASES


@few
@given(st.sampled_from([None, 1, "text", [1], True, 2.5]))
def test_row_that_is_not_an_object_is_a_problem(value):
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    read = read_rows([good, value])
    assert list(read.rows) == [0] and read.problems[1][0].reason == "wrong_type"


NO_PRESET = [name for name, make in CASES.items() if make().preset is None]


@pytest.mark.parametrize("name", NO_PRESET)
def test_schema_without_a_preset_is_read_right(name):
    assert_case(CASES[name]())


@pytest.mark.parametrize("name", NO_PRESET)
def test_expansion_reads_the_same_as_the_keys_that_were_written(name):
    assert_expansion(CASES[name]())


@pytest.mark.parametrize(
    ("columns", "shape"),
    [
        (["prompt", "chosen", "rejected"], "pair"),
        (["prompt", "responses"], "list"),
        (["prompt", "responses", "chosen", "rejected"], "mixed"),
        (["prompt", "response"], None),
        (["prompt", "chosen"], None),
    ],
)
def test_columns_show_the_shape(columns, shape):
    assert shape_by_columns(Adapter(), columns) == shape


def test_adapter_without_a_shape_names_the_columns_there():
    with pytest.raises(ConfigError) as caught:
        RowAdapter(Adapter(), ["prompt", "answer"])
    assert "no shape" in caught.value.message and "columns there: prompt, answer" in caught.value.hint


@pytest.mark.parametrize("shape", ["ab", "unpaired", "rows"])
def test_shape_that_needs_a_label_shows_one(shape):
    with pytest.raises(ConfigError, match=f"shape {shape} needs `label`") as caught:
        RowAdapter(Adapter.model_validate({"shape": shape}), ["prompt", "a", "b", "response"])
    assert "label: {" in caught.value.hint


def test_kind_of_label_that_the_shape_cannot_have_is_refused_with_those_it_can():
    label = {"column": "ok", "true": [True], "false": [False]}
    with pytest.raises(ConfigError, match="shape pair cannot have this kind of label") as caught:
        RowAdapter(Adapter.model_validate({"label": label}), ["prompt", "chosen", "rejected", "ok"])
    assert "kinds it can have: " in caught.value.hint and "scores" in caught.value.hint


def test_fields_have_the_names_of_the_file():
    pair = Adapter.model_validate({"shape": "pair", "columns": {"prompt": "q", "chosen": "good.text", "rejected": "bad"}})
    adapter = RowAdapter(pair, ["q", "good", "bad"])
    assert [adapter.place_of(field) for field in ("prompt", "responses[0]", "responses[1]", "id")] == ["q", "good.text", "bad", "id"]
    listed = RowAdapter(Adapter.model_validate({"shape": "list", "columns": {"responses": "answers[].text"}}), ["prompt", "answers"])
    assert listed.place_of("responses[2]") == "answers[2].text"


def test_rows_are_left_out_by_the_value_of_a_column():
    rows = [
        {"prompt": f"q{i}", "chosen": "a", "rejected": "b", "status": status} for i, status in enumerate(("ok", "discarded", "ok", None))
    ]
    read = read_rows(rows, {"leave_out": {"status": ["discarded"]}})
    assert sorted(read.rows) == [0, 2, 3] and not read.problems
    assert read.notes["rows left out by `status`"] == 1
    scored = [{"prompt": "q", "response": text, "score": n, "ok": n < 9} for n, text in ((1, "a"), (2, "b"), (9, "c"))]
    grouped = read_rows(scored, {"shape": "rows", "label": {"scores": ["score"]}, "leave_out": {"ok": [False]}})
    assert grouped.rows[0][0].fields["responses"] == ["a", "b"]


def test_messages_are_not_left_out_of_the_middle_of_trees():
    with pytest.raises(ValueError, match="`leave_out` would take messages out of the middle of trees"):
        Adapter.model_validate({"shape": "tree", "leave_out": {"lang": ["de"]}})

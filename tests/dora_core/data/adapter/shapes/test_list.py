"""Shape list: responses at any depth, the index of the best one, schemas without a preset."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_core.errors import DataError
from tests.dora_core.data.adapter.reading import NUMBERS, WORDS, assert_case, assert_same, few, one, read_rows, says
from tests.dora_core.data.cases import CASES, Truth, user


@few
@given(st.integers(-1, 4), st.sampled_from([0, 1]), st.integers(2, 3))
def test_index_decides_or_is_refused(index, base, count):
    row = {"prompt": "q", "responses": [f"r{i}" for i in range(count)], "best": index}
    read = read_rows([row], {"shape": "list", "label": {"column": "best", "index_base": base}})
    if 0 <= index - base < count:
        found = says(read.rows[0][0]).answers
        assert max(found, key=found.__getitem__) == f"r{index - base}" and sorted(found.values()) == [0.0] * (count - 1) + [1.0]
    else:
        assert read.problems[0][0].reason == "unknown_label" and "allowed" in read.problems[0][0].detail


@few
@given(
    st.lists(st.tuples(WORDS, NUMBERS), min_size=2, max_size=4, unique_by=lambda pair: pair[0]),
    st.lists(st.sampled_from(["a", "b.c", "d-e", "f g"]), max_size=3),
)
def test_nested_responses_are_found_at_any_depth(scored, keys):
    inner = [{"out": {"text": text}, "score": score} for text, score in scored]
    row = {"prompt": "q"}
    value, path = inner, ""
    for key in reversed(keys):
        value, path = {key: value, "other": 1}, f'."{key}"{path}'
    row["root"] = value
    mapping = {"shape": "list", "columns": {"responses": f"root{path}[].out.text", "rewards": f"root{path}[].score"}}
    assert_same(says(one([row], mapping)), Truth([user("q")], dict(scored)))


def test_struct_where_text_is_expected_names_the_path():
    rows = [{"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]}]
    with pytest.raises(DataError, match=r"answers\[0\] is a struct, expected text: map `responses: answers\[\]\.answer`"):
        read_rows(rows, {"preset": "none", "columns": {"responses": "answers"}})


def test_list_of_scores_of_another_length_is_refused():
    rows = [{"prompt": "q", "responses": ["a", "b"], "rewards": [1, 0]}, {"prompt": "q", "responses": ["a", "b"], "rewards": [1]}]
    read = read_rows(rows)
    (problem,) = read.problems[1]
    assert problem.reason == "length_mismatch" and problem.detail == "1 numbers for 2 responses"


@pytest.mark.parametrize("name", ["canonical_list_of_transcripts", "mixed_rewards", "five_attributes", "lists_as_text"])
def test_schema_of_lists_without_a_preset_is_read_right(name):
    assert assert_case(CASES[name]()).resolved.shape == "list"

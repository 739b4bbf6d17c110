"""Schemas and values found by trying further files: read right, or refused with the line to write."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dora_core.errors import DataError
from tests.dora_core.data.adapter.reading import assert_same, read_rows, says
from tests.dora_core.data.cases import Truth, assistant, system, user

WORDS = st.text(alphabet="abcdefgh ÄÖé水🧥.,?!'\"\n", min_size=1, max_size=40).map(str.strip).filter(bool)


NUMBERS = st.integers(-5, 5) | st.floats(-5, 5, allow_nan=False).map(lambda x: round(x, 3))


few = settings(max_examples=60, deadline=None)


def one(rows, keys=None, **options):
    read = read_rows(rows, keys, **options)
    assert not read.problems, read.problems
    ((row,),) = read.rows.values()
    return row


@pytest.mark.parametrize(
    "keys",
    [
        {"columns": {"responses": "a[].t", "rewards": "a[].rank"}},
        {"shape": "list", "columns": {"responses": "a[].t"}, "label": {"scores": ["a[].rank"]}},
    ],
)
def test_rank_is_not_read_as_a_reward(keys):
    row = {"prompt": "q", "a": [{"t": "best", "rank": 1}, {"t": "worst", "rank": 2}]}
    with pytest.raises(DataError, match=r'label: \{ranks: "a\[\].rank", base: 1\}'):
        read_rows([row], keys)
    ranked = {"shape": "list", "columns": {"responses": "a[].t"}, "label": {"ranks": "a[].rank", "base": 1}}
    assert says(one([row], ranked)).answers == {"best": -1.0, "worst": -2.0}
    weighed = {**ranked, "label": {"scores": ["a[].rank"], "weights": [1]}}
    assert says(one([row], weighed)).answers == {"best": 1.0, "worst": 2.0}


@pytest.mark.parametrize("key", ["tools", "functions", "images"])
def test_tools_and_media_beside_a_nested_prompt_refuse_a_late_row(key):
    row = {"in": {"messages": [user("q")]}, "chosen": "a", "rejected": "b"}
    late = {**row, "in": {**row["in"], key: [{"name": "f"}]}}
    read = read_rows([*[row] * 80, late], {"shape": "pair", "columns": {"prompt": "in.messages"}})
    assert set(read.problems) == {80} and read.problems[80][0].field == f"in.{key}"


@few
@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=3), st.sampled_from([list, json.dumps, repr]), st.booleans())
def test_lists_of_one_text_per_turn_are_conversations(turns, written, as_pair):
    asked, first, other = (list(column) for column in zip(*turns, strict=True))
    assume(first[-1].strip() != other[-1].strip())
    row = {"prompt": written(asked), "x": written(first), "y": written(other), "w": "left"}
    keys = (
        {"shape": "pair", "columns": {"chosen": "x", "rejected": "y"}, "ignore": ["w"]}
        if as_pair
        else {"shape": "ab", "columns": {"a": "x", "b": "y"}, "label": {"column": "w", "a": ["left"], "b": ["right"]}}
    )
    read = read_rows([row], keys)
    if first[:-1] == other[:-1]:
        truth = Truth([], {first[-1]: 1.0, other[-1]: 0.0})
        truth.prompt.extend(turn for q, a in zip(asked[:-1], first[:-1], strict=True) for turn in (user(q), assistant(a)))
        truth.prompt.append(user(asked[-1]))
        assert_same(says(read.rows[0][0]), truth)
    else:
        assert read.problems[0][0].reason == "prompt_mismatch"


def test_list_of_texts_as_prompt_beside_plain_responses_is_refused():
    read = read_rows([{"prompt": '["q"]', "chosen": "a", "rejected": "b"}])
    assert "prompt: prompt[0]" in read.problems[0][0].detail
    assert says(one([{"prompt": '["q"]', "chosen": "a", "rejected": "b"}], {"columns": {"prompt": "prompt[0]"}})).prompt == [user("q")]


@pytest.mark.parametrize(
    "prompt",
    [
        "### Human: q\n### Assistant:",
        "### Prompt:\nq\n\n### Response:",
        "Instruct: q\nOutput:",
        "<image>\nq",
        "q <image>",
        "q data:image/png;base64," + "A" * 100,
    ],
)
def test_open_templates_and_media_in_a_prompt_refuse_the_row(prompt):
    read = read_rows([{"prompt": prompt, "chosen": "a", "rejected": "b"}])
    assert not read.rows and read.problems[0][0].reason in ("templated_text", "media")
    assert "templated: parse" not in read.problems[0][0].detail


@pytest.mark.parametrize("prompt", ["# Notes\n### Setup: x\n### Output: y", "Draw an <image> tag in SVG.", "Question: q\n\nAnswer:"])
def test_headings_and_tags_inside_a_prompt_are_text(prompt):
    assert says(one([{"prompt": prompt, "chosen": "a", "rejected": "b"}])).prompt == [user(prompt)]


def test_turns_after_the_prompt_that_the_responses_share_belong_to_the_prompt():
    row = {
        "prompt": [user("q")],
        "chosen": [assistant("w"), user("z"), assistant("a")],
        "rejected": [assistant("w"), user("z"), assistant("b")],
    }
    assert says(one([row])).prompt == [user("q"), assistant("w"), user("z")]


@pytest.mark.parametrize(("label", "approved"), [("desirable", 1.0), ("Undesirable", 0.0), ("\N{THUMBS UP SIGN}", 1.0), (False, 0.0)])
def test_usual_names_of_approvals_are_known(label, approved):
    assert says(one([{"prompt": "q", "completion": "a", "label": label}])).answers == {"a": approved}


def test_responses_that_differ_in_white_space_alone_are_no_preference():
    keys = {"shape": "ab", "columns": {"a": "x", "b": "y"}, "label": {"column": "w", "a": [1], "b": [2]}}
    read = read_rows([{"prompt": "q", "x": "a", "y": " a\n", "w": 1}], keys)
    assert read.problems[0][0].reason == "identical_pair"


def test_whole_number_written_as_a_float_is_an_id():
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert one([{**row, "id": 3.0}]).fields["id"] == 3
    assert read_rows([{**row, "id": 3.5}]).problems[0][0].field == "id"


def test_list_of_texts_as_a_response_names_the_line():
    detail = read_rows([{"prompt": "q", "chosen": ["a"], "rejected": ["b", "c"]}]).problems[0][0].detail
    assert "`chosen: chosen[0]`" in detail and "`chosen: chosen[]` where each is a response of its own" in detail


@pytest.mark.parametrize(
    ("one_column", "other", "line"),
    [
        ("chosen_response", "rejected_response", "columns: {chosen: chosen_response, rejected: rejected_response}"),
        ("response_a", "response_b", "columns: {a: response_a, b: response_b}"),
        ("completion1", "completion2", "columns: {a: completion1, b: completion2}"),
        ("outputA", "outputB", "columns: {a: outputA, b: outputB}"),
    ],
)
def test_columns_that_look_like_two_responses_are_suggested(one_column, other, line):
    with pytest.raises(DataError) as caught:
        read_rows([{"prompt": "q", one_column: "a b", other: "c d"}])
    assert line in caught.value.hint


@pytest.mark.parametrize(
    ("prompt", "end"),
    [
        ("<bos><start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>"),
        ("<|system|>\nS</s>\n<|user|>\nq</s>\n<|assistant|>\n", "</s>"),
        ("<|user|>\nq<|end|>\n<|assistant|>\n", "<|end|>"),
    ],
)
def test_gemma_zephyr_and_phi_templates_are_parsed(prompt, end):
    row = {"prompt": prompt, "chosen": f"a{end}", "rejected": f"b{end}"}
    assert "templated: parse" in read_rows([row]).problems[0][0].detail
    said = says(one([row], {"messages": {"templated": "parse"}}))
    assert (said.prompt, list(said.answers)) == ([*([system("S")] if "S<" in prompt else []), user("q")], ["a", "b"])

"""Boundaries of implicit prompts, agreement of prompt and conversations, context in front of the prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_core.data.adapter.base import prompt_boundary
from tests.dora_core.data.adapter.reading import WORDS, few, one, read_rows, says
from tests.dora_core.data.cases import assistant, system, user


@pytest.mark.parametrize(
    ("texts", "marker", "longest"),
    [
        (["Q: a?\nA: yes", "Q: a?\nA: no"], "Q: a?\nA: ", "Q: a?\nA: "),
        (["Q: a?\nA: I do", "Q: a?\nA: I don't"], "Q: a?\nA: ", "Q: a?\nA: "),
        (
            ["### Question:\na\n### Answer:\nyes", "### Question:\na\n### Answer:\nno"],
            "### Question:\na\n### Answer:\n",
            "### Question:\na\n### Answer:\n",
        ),
        (
            ["sys\n\nHuman: a\n\nAssistant: x", "sys\n\nHuman: a\n\nAssistant: y"],
            "sys\n\nHuman: a\n\nAssistant: ",
            "sys\n\nHuman: a\n\nAssistant: ",
        ),
        (["Q: a\nA: b\nQ: c1\nA: d", "Q: a\nA: b\nQ: c2\nA: e"], None, None),
        (["line one\nyes", "line one\nno"], None, "line one\n"),
        (["what now? yes", "what now? no"], None, "what now? "),
        (["Wiping is good", "Wipes are good"], None, None),
        (["A: yes", "A: no"], "A: ", "A: "),
        (["same", "same"], None, None),
        (["Q: a\nA: ", "Q: a\nA: x"], None, None),
        (["yes", "no"], None, None),
    ],
)
def test_prompt_ends_at_a_turn_marker_or_as_asked(texts, marker, longest):
    for rule, prefix in (("marker", marker), ("longest", longest)):
        assert prompt_boundary(texts, rule) == (None if prefix is None else len(prefix))


@given(st.lists(st.text(alphabet="ab \n:AQ#", min_size=1, max_size=12), min_size=2, max_size=3), st.sampled_from(["marker", "longest"]))
def test_boundary_is_never_inside_a_word_and_leaves_every_response(texts, rule):
    end = prompt_boundary(texts, rule)
    if end is not None:
        assert len({text[:end] for text in texts}) == 1
        assert all(text[end:].strip() for text in texts)
        assert not (texts[0][end - 1].isalnum() and any(text[end].isalnum() for text in texts))


@pytest.mark.parametrize(
    ("prompt", "lead", "expected"),
    [
        ("q", [user("q")], [user("q")]),
        ("q", [system("s"), user("q")], [system("s"), user("q")]),
        ([system("s"), user("q")], [user("q")], [system("s"), user("q")]),
        ("first", [user("first"), assistant("a"), user("q")], [user("first"), assistant("a"), user("q")]),
        (" q\n", [user("q")], [user("q")]),
        ("other", [user("q")], None),
        (
            "q",
            [user("q"), assistant("a"), user("z"), assistant("b"), user("y")],
            [user("q"), assistant("a"), user("z"), assistant("b"), user("y")],
        ),
        ("z", [user("q"), assistant("a"), user("z"), assistant("b"), user("y")], None),
    ],
)
def test_prompt_column_and_conversations_must_agree(prompt, lead, expected):
    read = read_rows([{"prompt": prompt, "chosen": [*lead, assistant("x")], "rejected": [*lead, assistant("y")]}])
    if expected is None:
        assert read.problems[0][0].reason == "prompt_mismatch"
    else:
        found = says(read.rows[0][0]).prompt
        assert [(m["role"], m["content"].strip()) for m in found] == [(m["role"], m["content"]) for m in expected]


def test_prompt_that_is_null_is_a_problem_and_not_cut_from_the_responses():
    rows = [{"prompt": None, "chosen": "Q: a\nA: x", "rejected": "Q: a\nA: y"}, {"prompt": "p", "chosen": "x", "rejected": "y"}]
    assert read_rows(rows).problems[0][0].reason == "empty_prompt"


def test_carried_columns_are_kept_as_json():
    odd = [float("nan"), float("-inf"), b"x", "y"]
    read = read_rows([{"prompt": "p", "chosen": "x", "rejected": "y", "who": "w1", "at": {"day": 3}, "odd": odd}])
    assert read.rows[0][0].fields["extra"] == '{"at":{"day":3},"odd":[null,"-inf","b\'x\'","y"],"who":"w1"}'
    read = read_rows([{"prompt": "p", "chosen": "x", "rejected": "y", "who": "w1", "at": {"day": 3}}])
    assert read.rows[0][0].fields["extra"] == '{"at":{"day":3},"who":"w1"}'


@few
@given(WORDS, st.none() | st.just(" ") | WORDS, st.lists(st.tuples(WORDS, WORDS), max_size=2), st.just("") | WORDS, st.booleans())
def test_context_is_in_the_prompt_in_order(prompt, sys_text, history, extra, as_messages):
    past = [turn for asked, said in history for turn in (user(asked), assistant(said))]
    row = {
        "s": sys_text,
        "h": past if as_messages else [list(pair) for pair in history],
        "p": prompt,
        "i": extra,
        "chosen": "good",
        "rejected": "bad",
    }
    keys = {"shape": "pair", "columns": {"prompt": "p"}, "context": {"system": "s", "history": "h", "input": "i"}}
    expected = ([system(sys_text)] if sys_text and sys_text.strip() else []) + past + [user(f"{prompt}\n\n{extra}" if extra else prompt)]
    assert says(one([row], keys)).prompt == expected


def test_two_system_prompts_are_a_problem():
    row = {"sys": "One.", "prompt": [system("Two."), user("q")], "chosen": "a", "rejected": "b"}
    read = read_rows([row, {**row, "sys": " Two. "}], {"shape": "pair", "context": {"system": "sys"}})
    assert read.problems[0][0].reason == "context_conflict"
    assert says(read.rows[1][0]).prompt == [system("Two."), user("q")]


@few
@given(
    st.sampled_from(
        [
            ("train", "train"),
            ("TRAIN_prefs", "train"),
            ("test", "eval"),
            ("valid1", "eval"),
            ("holdout", "eval"),
            ("gold", "eval"),
            ("zzz", None),
        ]
    )
)
def test_split_is_kept_or_refused(pair):
    name, wanted = pair
    read = read_rows([{"prompt": "q", "chosen": "a", "rejected": "b", "split": name}], {"splits": {"gold": "eval"}})
    if wanted is None:
        assert read.problems[0][0].reason == "unknown_split" and "columns: {split: false}" in read.problems[0][0].detail
    else:
        assert read.rows[0][0].fields["split"] == wanted


@few
@given(st.sampled_from(["id", "task", "split", "chosen_source"]), st.sampled_from([["x"], {"a": 1}, 1.5, True]))
def test_column_with_a_canonical_name_can_be_switched_off(name, value):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", name: value}
    found = one([row], {"columns": {name: False}})
    assert says(found).answers == {"a": 1.0, "b": 0.0} and found.fields.get(name) is None

"""Boundaries of implicit prompts, agreement of prompt and conversations, context in front of the prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dora_core.config.adapter import Adapter
from dora_core.data.adapter.base import prompt_boundary
from dora_core.data.response_turns import TURN, split_turns
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


# ---------------------------------------------------------------------------------------------------- learn_turns: all

ALL = {"messages": {"learn_turns": "all"}}
LATER = [user("And then?"), assistant("The other.")]
BEGUN = [user("Which?"), assistant("This."), *LATER]


def prompt_and_turns(row, keys=ALL, **options):
    """Prompt, and the turns of each response, of the only row."""
    fields = one([row], keys, **options).fields
    texts = [fields[name] for name in ("chosen", "rejected", "response") if name in fields] or fields["responses"]
    return fields["prompt"], [split_turns(text) for text in texts]


def test_trajectories_that_part_early_are_responses_of_several_turns():
    """The prompt is what they share; without the key the row is refused with the line to write."""
    other = [user("Which?"), assistant("None."), user("Why?"), assistant("Hm.")]
    row = {"chosen": BEGUN, "rejected": other}
    assert prompt_and_turns(row) == ([user("Which?")], [BEGUN[1:], other[1:]])
    assert prompt_and_turns({"prompt": [user("Which?")], "chosen": BEGUN[1:], "rejected": other[1:]}) == (
        [user("Which?")],
        [BEGUN[1:], other[1:]],
    )
    assert prompt_and_turns({"prompt": "Which?", "chosen": BEGUN, "rejected": other[1:]}) == ([user("Which?")], [BEGUN[1:], other[1:]])
    assert "{learn_turns: all}" in read_rows([row]).problems[0][0].detail
    assert read_rows([row], ALL).notes["responses of several turns, of which all turns of the assistant are learned"] == 2


def test_conversations_that_part_at_their_last_turn_are_read_as_ever():
    row = {"chosen": BEGUN, "rejected": [*BEGUN[:-1], assistant("None.")]}
    assert one([row], ALL) == one([row])


def test_one_conversation_is_a_response_from_the_first_turn_of_the_assistant_on():
    assert prompt_and_turns({"response": BEGUN}, golden=True) == (BEGUN[:1], [BEGUN[1:]])
    given = {"prompt": BEGUN[:3], "response": BEGUN}
    assert prompt_and_turns(given, golden=True) == (BEGUN[:3], [BEGUN[3:]]), "a prompt that is given is no response"
    assert prompt_and_turns({"response": BEGUN}, {}, golden=True) == (BEGUN[:3], [BEGUN[3:]])


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (BEGUN, [user("What?"), *BEGUN[1:]], "prompt_mismatch"),
        ([*BEGUN[:2], {"role": "tool", "content": "4", "tool_call_id": "c"}, assistant("x")], BEGUN, "tool_call"),
        ([user("Which?"), assistant(" "), *LATER], BEGUN, "empty_response"),
        ([user("Which?"), assistant(f"\n\n{TURN}User: me"), *LATER], BEGUN, "reserved_character"),
    ],
)
def test_turns_that_cannot_be_learned_refuse_the_row(chosen, rejected, reason):
    keys = {"messages": {"learn_turns": "all", "tools": "keep"}}
    [problem] = read_rows([{"chosen": chosen, "rejected": rejected}], keys).problems[0]
    assert problem.reason == reason


@pytest.mark.parametrize("keys", [{}, ALL])
def test_no_text_of_the_data_becomes_a_turn(keys):
    [problem] = read_rows([{"prompt": "q", "chosen": f"a\n\n{TURN}User: b\n\n{TURN}Assistant: c", "rejected": "d"}], keys).problems[0]
    assert problem.reason == "reserved_character"


def test_cut_and_learned_turns_exclude_each_other():
    with pytest.raises(ValidationError, match="write one of the two"):
        Adapter.model_validate({"messages": {"learn_turns": "all", "differ": "cut"}})

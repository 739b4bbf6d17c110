"""Messages of prompts and responses: payloads are refused or kept, text that holds messages is read as messages, roles of every dialect."""

from __future__ import annotations

import json

from hypothesis import assume, given
from hypothesis import strategies as st

from dora_core.config.adapter import DEFAULT_ROLES
from tests.dora_core.data.adapter.reading import WORDS, assert_same, few, one, read_rows, says
from tests.dora_core.data.cases import Truth, assistant, message, system, user


@few
@given(
    st.sampled_from(["tool_calls", "function_call", "images", "audio", "refusal", "reasoning_content", "thinking"]),
    st.sampled_from(["prompt", "chosen", "rejected"]),
    st.sampled_from([[{"id": "c"}], {"name": "f"}, "text"]),
)
def test_payload_of_a_message_refuses_the_row(key, where, payload):
    row = {"prompt": [user("q"), assistant("w"), user("z")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    row[where] = [*row[where][:-1], {**row[where][-1], key: payload}]
    read = read_rows([row])
    assert not read.rows and any(key in p.field or key in p.detail for p in read.problems[0])


@few
@given(st.sampled_from(["image_url", "image", "input_audio", "video", "file", "tool_use", None]), st.booleans())
def test_part_of_another_type_refuses_the_row(kind, in_prompt):
    parts = [{"type": "text", "text": "look"}, {"type": kind, "image_url": "x"}]
    row = {
        "prompt": [message("user", parts if in_prompt else "q")],
        "chosen": [message("assistant", "a" if in_prompt else parts)],
        "rejected": "b",
    }
    assert not read_rows([row]).rows


def test_kept_tool_calls_stay_with_the_prompt():
    call = [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]
    prompt = [user("q"), {"role": "assistant", "content": None, "tool_calls": call}, {"role": "tool", "content": "4", "tool_call_id": "c1"}]
    row = {"prompt": prompt, "chosen": "a", "rejected": "b", "tools": [{"name": "f"}]}
    read = read_rows([row], {"context": {"tools": "tools"}, "messages": {"tools": "keep"}})
    fields = read.rows[0][0].fields
    assert json.loads(fields["prompt"][1]["tool_calls"]) == call and fields["prompt"][2]["tool_call_id"] == "c1"
    assert json.loads(fields["tools"]) == [{"name": "f"}]


@few
@given(st.sampled_from(["weight", "name", "train", "end_turn"]), st.sampled_from([0, 1.5, "x", False]))
def test_other_fields_of_a_message_are_counted(key, value):
    read = read_rows([{"prompt": "q", "chosen": [{**assistant("a"), key: value}], "rejected": "b"}])
    assert read.rows and read.notes[f"message field {key}"] == 1


@few
@given(WORDS, WORDS, WORDS, st.sampled_from(["json", "python", "numpy", "indent"]))
def test_messages_written_as_text_are_read_as_messages(asked, good, bad, style):
    def written(messages):
        if style in ("json", "indent"):
            return json.dumps(messages, indent=1 if style == "indent" else None, ensure_ascii=False)
        return repr(messages) if style == "python" else repr(messages).replace("}, {", "}\n {")

    row = {"chosen": written([user(asked), assistant(good)]), "rejected": written([user(asked), assistant(bad)])}
    read = read_rows([row])
    if good == bad:
        return
    assert_same(says(read.rows[0][0]), Truth([user(asked)], {good: 1.0, bad: 0.0}))


@few
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | WORDS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
        max_leaves=5,
    )
)
def test_json_by_intent_stays_text(value):
    text = json.dumps([value])
    row = {"prompt": "q", "chosen": text, "rejected": "other"}
    assert says(one([row])).answers == {text: 1.0, "other": 0.0}


@few
@given(WORDS, WORDS, WORDS, st.integers(0, 2))
def test_transcripts_are_read_anywhere(asked, good, bad, place):
    assume(good != bad and "\n\n" not in asked + good + bad)
    lead = f"\n\nHuman: {asked}\n\nAssistant:"
    if place == 0:
        row = {"chosen": f"{lead} {good}", "rejected": f"{lead} {bad}"}
    elif place == 1:
        row = {"prompt": lead, "responses": [f"{lead} {good}", f"{lead} {bad}"], "rewards": [1, 0]}
    else:
        row = {"prompt": lead, "chosen": good, "rejected": f"\n\nAssistant: {bad}"}
    assert_same(says(one([row])), Truth([user(asked)], {good: 1.0, bad: 0.0}))


@few
@given(
    st.sampled_from([name for name, role in DEFAULT_ROLES.items() if role == "user"]),
    st.sampled_from([name for name, role in DEFAULT_ROLES.items() if role == "assistant"]),
    st.sampled_from([name for name, role in DEFAULT_ROLES.items() if role == "system"]),
    st.sampled_from([("role", "content"), ("from", "value"), ("speaker", "words")]),
    st.sampled_from([str.upper, str.lower, str.title]),
)
def test_roles_and_keys_of_every_dialect(asker, answerer, ruler, keys, case):
    def turn(role, text):
        return message(case(role), text, *keys)

    row = {"prompt": [turn(ruler, "s"), turn(asker, "q")], "chosen": turn(answerer, "a"), "rejected": [turn(answerer, "b")]}
    settings_ = {"shape": "pair", "messages": {"role": "speaker", "content": "words"}} if keys[0] == "speaker" else {}
    assert_same(says(one([row], settings_)), Truth([system("s"), user("q")], {"a": 1.0, "b": 0.0}))


def test_unknown_role_is_refused_with_the_line_to_write():
    row = {"prompt": [message("narrator", "q")], "chosen": "a", "rejected": "b"}
    (problem,) = read_rows([row]).problems[0]
    assert problem.reason == "unknown_role" and "messages: {roles: {narrator: user}}" in problem.detail
    assert says(one([row], {"messages": {"roles": {"Narrator": "user"}}})).prompt == [user("q")]

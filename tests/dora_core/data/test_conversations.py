"""Shapes of prompts, and templates that refuse them."""

from __future__ import annotations

import pytest

from dora_core.config.method import TextConfig
from dora_core.data.conversations import ConversationCounter, check_conversations
from dora_core.data.encoding import Encoder
from dora_core.data.response_turns import join_turns
from dora_core.errors import DataError
from tests.dora_core.data.chat_families import FAMILIES


def talk(*roles: str, extra: str | None = None):
    return [{"role": role, "content": "text", **({"extra": extra} if extra else {})} for role in roles]


def test_shapes_are_counted_with_their_first_record() -> None:
    counter = ConversationCounter()
    assert counter.add(talk("user"), "a") and not counter.add(talk("user"), "b")
    assert counter.add(talk("system", "user"), "c")
    assert counter.add(talk("user", extra='{"tools": []}'), "d"), "tools are another shape"
    found = [(shape.roles, shape.tools, shape.record_id, shape.records) for shape in counter.shapes()]
    assert found == [(["user"], False, "a", 2), (["system", "user"], False, "c", 1), (["user"], True, "d", 1)]


def test_longer_alternations_are_one_shape_and_a_break_in_them_is_another() -> None:
    counter = ConversationCounter()
    pair = ("user", "assistant")
    firsts = [counter.add(talk(*pair * n, "user"), f"{n}") for n in range(8)]
    assert firsts == [True, True, True, *[False] * 5], "three pairs and more are two pairs"
    assert counter.add(talk(*pair * 6, "user", "user"), "two questions at the end")


def test_a_template_that_refuses_a_shape_names_record_roles_and_remedies() -> None:
    counter = ConversationCounter()
    counter.add(talk("user"), "fine")
    for record in ("first", "second"):
        counter.add(talk("system", "user"), record)
    tokenizer = FAMILIES["Gemma 2"].tokenizer()
    template = Encoder(tokenizer, TextConfig()).template
    assert template is not None
    with pytest.raises(
        DataError, match=r"record first \(2 records have these roles\): the chat template of .* roles system, user"
    ) as refused:
        check_conversations(template, counter.shapes())
    assert "text.system: merge" in refused.value.hint
    merging = Encoder(tokenizer, TextConfig(system="merge")).template
    assert merging is not None
    check_conversations(merging, counter.shapes())


def test_roles_that_must_alternate_are_refused() -> None:
    counter = ConversationCounter()
    counter.add(talk("user", "user"), "twice")
    template = Encoder(FAMILIES["Gemma 3"].tokenizer(), TextConfig()).template
    assert template is not None
    with pytest.raises(DataError, match=r"record twice: .*must alternate") as refused:
        check_conversations(template, counter.shapes())
    assert "text.template: plain" in refused.value.hint


def test_questions_within_responses_are_conversations_too() -> None:
    """A template that wants users and assistants in turn refuses two questions in a row within a response."""
    counter = ConversationCounter()
    response = join_turns(talk("assistant", "user", "user", "assistant"))
    assert counter.add_record(talk("user"), ["plain", response], "r")
    assert [shape.roles for shape in counter.shapes()] == [["user"], ["user", "assistant", "user", "user"]]
    template = Encoder(FAMILIES["Gemma 3"].tokenizer(), TextConfig()).template
    assert template is not None
    with pytest.raises(DataError, match=r"record r: .*must alternate"):
        check_conversations(template, counter.shapes())

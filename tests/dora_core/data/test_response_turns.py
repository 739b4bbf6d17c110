"""Responses of several turns as texts, and where a prompt ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_core.data.response_turns import TURN, common_turns, join_turns, readable, split_turns

TEXTS = st.text(st.characters(exclude_characters=TURN, exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["\n\nUser: ", "Assistant: x", "\n", "\n\n"]
)
TURNS = st.lists(st.tuples(st.sampled_from(["user", "system", "tool", "assistant"]), TEXTS), max_size=5)


def talk(*words: str, first: str = "user") -> list[dict[str, str]]:
    """Turns of the user and the assistant in turn."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[place % 2], "content": word} for place, word in enumerate(words)]


@given(TEXTS, TURNS, TEXTS)
def test_turns_come_back_from_their_text(first: str, between: list[tuple[str, str]], last: str) -> None:
    turns = [("assistant", first), *between, ("assistant", last)]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert split_turns(join_turns(messages)) == messages
    assert split_turns(first) == [{"role": "assistant", "content": first}] and join_turns(split_turns(first)) == first


def test_people_read_a_transcript() -> None:
    assert readable(join_turns(talk("a", "b", "c", first="assistant"))) == "a\n\nUser: b\n\nAssistant: c"
    assert readable("plain") == "plain"


@pytest.mark.parametrize(
    ("conversations", "given_turns", "expected"),
    [
        ([talk("q", "a"), talk("q", "b")], 0, 1),
        ([talk("q", "a", "r", "b"), talk("q", "a", "r", "c")], 0, 3),
        ([talk("q", "a", "r", "b"), talk("q", "x", "r", "c")], 0, 1),
        ([talk("q", "a", "r", "b"), talk("q", "a", "s", "c")], 0, 1),  # they part at a question: its turn follows an equal answer
        ([talk("q", "a"), talk("q", "a", "r", "b")], 0, 1),
        ([talk("q", "a"), talk("p", "a")], 0, None),
        ([talk("q", "a", "r", "b")], 0, 1),
        ([talk("q", "a", "r", "b")], 3, 3),
        ([talk("q", "a", "r", "b"), talk("q", "a", "s", "c")], 3, None),
    ],
)
def test_a_prompt_ends_where_conversations_part_in_front_of_an_answer(conversations, given_turns: int, expected: int | None) -> None:
    assert common_turns(conversations, given_turns) == expected

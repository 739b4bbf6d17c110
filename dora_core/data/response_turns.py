"""Responses of several turns as one text, and back.

A preference over trajectories has responses such as assistant, user, assistant. The canonical record holds texts, and so do all tables made
from it; such a response is its first turn's text and, behind it, each further turn with its role::

    the first answer⏎⏎▯User: a question⏎⏎▯Assistant: the second answer

▯ is :data:`TURN`, a noncharacter of Unicode, reserved for use inside one program; texts of the data that hold it are refused. So no text
of the data can become a turn, and without it (:func:`readable`) the response reads like any transcript.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dora_core.data.records import Message

TURN = "\ufdd0"
"""Noncharacter in front of the role of every turn but the first (Unicode Standard, section 23.7)."""
_ROLES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
_NEXT = re.compile(f"\n\n{TURN}({'|'.join(_ROLES.values())}): ")


def join_turns(turns: Sequence[Message]) -> str:
    """One text of a response's turns; the first and the last are the assistant's. One turn is its own text."""
    first, *rest = turns
    return first["content"] + "".join(f"\n\n{TURN}{_ROLES[turn['role']]}: {turn['content']}" for turn in rest)


def split_turns(response: str) -> list[Message]:
    """Turns of a response: the inverse of :func:`join_turns`."""
    if TURN not in response:
        return [{"role": "assistant", "content": response}]
    first, *rest = _NEXT.split(response)
    further = zip(rest[::2], rest[1::2], strict=True)
    return [{"role": "assistant", "content": first}, *({"role": role.lower(), "content": text} for role, text in further)]


def readable(response: str) -> str:
    """The response for people, judges and classifiers: without :data:`TURN`, a transcript."""
    return response.replace(TURN, "")


def common_turns(conversations: Sequence[Sequence[Message]], given: int = 0) -> int | None:
    """Number of leading turns that are the prompt of these conversations, each of which ends with a turn of the assistant.

    The prompt ends where the conversations part, and in front of a turn of the assistant in all of them; a single conversation parts at its
    first turn of the assistant. A shared turn of the assistant that ends up in the responses has the same log-probability in all.

    Args:
        given: turns that belong to the prompt whatever follows.

    Returns:
        None if no such place exists.
    """
    shortest = min(len(turns) for turns in conversations)
    place = next((i for i in range(shortest) if any(turns[i] != conversations[0][i] for turns in conversations)), shortest)
    if len(conversations) == 1:
        return next((i for i in range(given, shortest) if conversations[0][i]["role"] == "assistant"), None)
    ends = (i for i in range(min(place, shortest - 1), given - 1, -1) if all(turns[i]["role"] == "assistant" for turns in conversations))
    return next(ends, None)

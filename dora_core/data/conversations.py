"""Shapes of prompts: the roles of their messages in order, with one record as an example of each.

A chat template takes some shapes and refuses others. Their number is small whatever the number of records, so a template is tried on
each shape before anything heavy runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dora_core.data.response_turns import TURN, split_turns
from dora_core.errors import DataError
from dora_core.strict_model import StrictModel

if TYPE_CHECKING:
    from dora_core.data.chat_template import ChatTemplate
    from dora_core.data.records import Message

MOST_SHAPES = 256
"""Shapes that are kept; a data set with more of them has other problems."""
REPEATS = 2
"""Equal pairs of roles in a row that are told apart: user, assistant, user, assistant stands for every longer alternation."""


class Conversation(StrictModel):
    """A shape of prompts.

    Attributes:
        record_id: the first record with it.
    """

    roles: list[str]
    tools: bool = Field(description="A message defines or calls tools.")
    record_id: str
    records: int = 1


class ConversationCounter:
    """Counts shapes, record by record."""

    def __init__(self) -> None:
        self._found: dict[tuple[tuple[str, ...], bool], tuple[str, int]] = {}

    def add(self, messages: Sequence[Message], record_id: str) -> bool:
        """Count one record; True for the first of its shape."""
        key = (_shortened([message["role"] for message in messages]), any(message.get("extra") for message in messages))
        if key not in self._found and len(self._found) >= MOST_SHAPES:
            return False
        first, count = self._found.get(key, (record_id, 0))
        self._found[key] = (first, count + 1)
        return not count

    def add_record(self, prompt: Sequence[Message], responses: Sequence[str], record_id: str) -> bool:
        """Count one record's prompt, and of responses of several turns the conversation that their last turn answers; True if one of
        these is the first of its shape."""
        several = ([*prompt, *split_turns(response)[:-1]] for response in responses if TURN in response)
        return any([self.add(messages, record_id) for messages in (prompt, *several)])

    def shapes(self) -> list[Conversation]:
        """In the order of their first records."""
        return [
            Conversation(roles=list(roles), tools=tools, record_id=first, records=count)
            for (roles, tools), (first, count) in self._found.items()
        ]


def check_conversations(template: ChatTemplate, shapes: Iterable[Conversation]) -> None:
    """Render each shape with texts of its own.

    Raises:
        DataError: the template refuses one, with the record, its roles, the template's reason and the remedies.
    """
    from dora_core.data.chat_template import RefusedConversation

    for shape in shapes:
        if shape.tools or "tool" in shape.roles:
            continue  # what a message of tools must hold differs between templates: only the record itself can be tried
        messages: list[Any] = [{"role": role, "content": f"text {place}"} for place, role in enumerate(shape.roles)]
        try:
            template.render(messages)
        except RefusedConversation as error:
            raise refused(error, shape.record_id, shape.records) from error


def refused(error: Exception, record_id: str, records: int = 0) -> DataError:
    """The error of a plan for a record whose conversation a template refuses."""
    message, hint = getattr(error, "message", str(error)), getattr(error, "hint", "")
    more = f" ({records:,} records have these roles)" if records > 1 else ""
    return DataError(f"record {record_id}{more}: {message}", hint=hint)


def _shortened(roles: Sequence[str]) -> tuple[str, ...]:
    """Roles with every run of one pair cut to :data:`REPEATS` pairs."""
    kept = list[str]()
    for role in roles:
        kept.append(role)
        pair = kept[-2:]
        if len(kept) > 2 * REPEATS and kept[-2 * (REPEATS + 1) :] == pair * (REPEATS + 1):
            del kept[-2:]
    return tuple(kept)

"""Prompts with two turns of one role in a row: some chat templates refuse them, others join or drop turns."""

from __future__ import annotations

from itertools import pairwise

from dora_core.data.suspicion.base import CountingRule, Seen


class RepeatedRoles(CountingRule):
    """Two consecutive messages of the user or the assistant, or an assistant's turn at the start."""

    name = "repeated_roles"
    phrase = "have a prompt with two consecutive turns of one role, or one that starts with the assistant"
    hint = "check that the model's chat template takes them; a turn may be missing in the data"

    def holds(self, seen: Seen) -> bool:
        roles = [message["role"] for message in seen.record.prompt if message["role"] != "system"]
        if len(roles) < 2:
            return roles == ["assistant"]
        return roles[0] == "assistant" or any(a == b and a != "tool" for a, b in pairwise(roles))


RULE = RepeatedRoles

"""Ids that occur in several inputs: ids are per input, so the later record gets another one."""

from __future__ import annotations

from dora_core.data.suspicion.base import CountingRule, Seen


class RepeatedIds(CountingRule):
    """A record whose id an earlier input has."""

    name = "repeated_ids"
    phrase = "have an id that an earlier input has, and got one of their own"
    hint = "ids are unique per input; to trace a record use its file and row"

    def holds(self, seen: Seen) -> bool:
        return seen.renamed


RULE = RepeatedIds

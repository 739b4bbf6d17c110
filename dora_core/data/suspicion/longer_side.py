"""Preferences that length alone explains: the preferred response is nearly always the longer one, or the shorter one."""

from __future__ import annotations

from collections.abc import Iterator

from dora_core.config.data import DataConfig
from dora_core.data.suspicion.base import EXAMPLES, Example, Finding, Rule, Seen

FEWEST = 50
"""Pairs of different lengths below which the share says nothing."""
SHARE = 0.95


class LongerSide(Rule):
    """Share of records whose best response is longer than their worst."""

    name = "longer_side"
    hint = "a policy may learn length alone: check the labels, or balance the data"

    def __init__(self, data: DataConfig):
        super().__init__(data)
        self.counts = {"longer": 0, "shorter": 0}
        self.examples: dict[str, list[Example]] = {"longer": [], "shorter": []}

    def see(self, seen: Seen) -> None:
        measured = [(reward, i) for i, reward in enumerate(seen.record.rewards) if reward is not None]
        if len(measured) < 2:
            return
        (worst, low), (best, high) = min(measured), max(measured)
        lengths = [len(text) for text in seen.record.responses]
        if best == worst or lengths[low] == lengths[high]:
            return
        side = "longer" if lengths[high] > lengths[low] else "shorter"
        self.counts[side] += 1
        if len(self.examples[side]) < EXAMPLES:
            self.examples[side].append(seen.at)

    def findings(self) -> Iterator[Finding]:
        pairs = sum(self.counts.values())
        for side, count in self.counts.items():
            if pairs >= FEWEST and count >= SHARE * pairs:
                yield self.found(count, f"in {count} of {pairs} preferences the preferred response is the {side} one", self.examples[side])


RULE = LongerSide

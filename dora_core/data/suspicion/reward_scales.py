"""Rewards of one source on two scales, such as 0 to 1 in some rows and 0 to 10 in others."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from dora_core.config.data import DataConfig
from dora_core.data.suspicion.base import EXAMPLES, Example, Finding, Rule, Seen

FEWEST = 5
SHARE = 0.05
"""Share of a source's rows that a scale needs to count."""


class RewardScales(Rule):
    """Largest reward of each row, by source: fractions up to 1, up to 10, or beyond 20. Sources with negative rewards are left out."""

    name = "reward_scales"
    hint = "rewards are compared within a record only, but thresholds and averages are not: rescale them, or name the judges as sources"

    def __init__(self, data: DataConfig):
        super().__init__(data)
        self.scales: dict[str, Counter[str]] = defaultdict(Counter)
        self.examples: dict[tuple[str, str], list[Example]] = defaultdict(list)

    def see(self, seen: Seen) -> None:
        if seen.record.reward_kind != "reward":
            return
        measured = [reward for reward in seen.record.rewards if reward is not None]
        if not measured:
            return
        top = max(measured)
        if min(measured) < 0:
            scale = "negative"
        elif top <= 1:
            scale = "0 to 1" if any(reward != int(reward) for reward in measured) else "0 or 1"
        else:
            scale = "up to 10" if top <= 10 else "above 10" if top <= 20 else "above 20"
        for source in {source or "(unknown)" for source in seen.record.sources}:
            self.scales[source][scale] += 1
            if len(self.examples[source, scale]) < EXAMPLES:
                self.examples[source, scale].append(seen.at)

    def findings(self) -> Iterator[Finding]:
        alike: dict[str, list[str]] = defaultdict(list)
        for source, scales in sorted(self.scales.items()):
            found = sorted(scale for scale, n in scales.items() if n >= FEWEST and n >= SHARE * scales.total())
            larger = set(found) - {"0 to 1", "0 or 1"}
            if not scales["negative"] and (("0 to 1" in found and larger) or {"up to 10", "above 20"} <= larger):
                alike[", ".join(f"{scale} in {scales[scale]} records" for scale in found)].append(source)
        for parts, sources in alike.items():
            examples = [at for (source, _), rows in self.examples.items() if source == sources[0] for at in rows[:1]]
            names = ", ".join(sources[:5]) + (f" and {len(sources) - 5} more" if len(sources) > 5 else "")
            rows = sum(self.scales[source].total() for source in sources)
            yield self.found(rows, f"rewards of {names} span two scales: {parts}", examples)


RULE = RewardScales

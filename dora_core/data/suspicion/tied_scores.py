"""Records whose measured responses all have one reward: no preference can be learned from them."""

from __future__ import annotations

from dora_core.data.suspicion.base import CountingRule, Seen


class TiedScores(CountingRule):
    """At least two measured responses, and all rewards equal."""

    name = "tied_scores"
    phrase = "express no preference: their rewards are equal"
    hint = "expected where annotators may judge a tie; otherwise map the label or score that tells the responses apart"

    def holds(self, seen: Seen) -> bool:
        measured = [reward for reward in seen.record.rewards if reward is not None]
        return len(measured) > 1 and min(measured) == max(measured)


RULE = TiedScores

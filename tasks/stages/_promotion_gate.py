"""The promotion gate: rules over an evaluation, each with its number, its threshold and a sentence.

**A new rule** is an entry of :data:`RULES` and its threshold in ``GateConfig`` (``dora_core/config/method.py``). A rule without evidence
(no golden pairs, no champion, …) or without a threshold is left out of the result.

Left out: a rule for the worst source or task. The lowest of many estimates is low by chance, so a threshold on it refuses policies for
having many groups; groups are shown with their intervals instead, and a self-training round is guarded by its change
(``tasks/stages/guard.py``).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from dora_core.config.method import GateConfig
from dora_core.evaluation.metrics import Interval
from dora_core.evaluation.winrate import Outcomes
from dora_core.strict_model import StrictModel
from tasks.stages._preference_measures import PreferenceMeasures

RELATIONS: dict[str, Callable[[float, float], bool]] = {"above": operator.gt, "at least": operator.ge, "at most": operator.le}


class RuleResult(StrictModel):
    """A rule that was checked."""

    name: str
    passed: bool
    value: float
    threshold: float
    message: str = Field(description="The rule with its threshold and the number found.")


class GateResult(StrictModel):
    """Every rule that was checked; the gate passes when all of them do."""

    passed: bool
    rules: list[RuleResult]

    @property
    def broken(self) -> list[RuleResult]:
        """The rules that were not met."""
        return [rule for rule in self.rules if not rule.passed]


@dataclass(frozen=True)
class Evidence:
    """Input of the rules.

    Attributes:
        wins: outcomes against the opponents of the ``compare`` stage, by their name; empty without one.
    """

    measures: PreferenceMeasures
    wins: Mapping[str, Outcomes]

    def win_rate(self, opponent: str) -> Interval | None:
        return self.wins[opponent].win_rate if opponent in self.wins else None


@dataclass(frozen=True)
class GateRule:
    """A rule of the gate: ``value`` in ``relation`` to the threshold.

    Attributes:
        value: the number that is checked; None where there is no evidence for the rule.
        threshold: field of ``GateConfig``.
        subject: the sentence before ``relation``.
    """

    name: str
    value: Callable[[Evidence], float | None]
    relation: Literal["above", "at least", "at most"]
    threshold: str
    subject: str

    def check(self, gate: GateConfig, evidence: Evidence) -> RuleResult | None:
        """Return the result, or None without evidence or threshold."""
        value, threshold = self.value(evidence), getattr(gate, self.threshold)
        if value is None or threshold is None:
            return None
        message = f"{self.subject} {self.relation} {threshold:g}: {value:.4g}"
        passed = RELATIONS[self.relation](value, threshold)
        return RuleResult(name=self.name, passed=passed, value=value, threshold=threshold, message=message)


def _accuracy(evidence: Evidence) -> float:
    return evidence.measures.parts["all"].accuracy.policy.low


def _golden_drop(evidence: Evidence) -> float | None:
    lift = evidence.measures.lift.start_golden
    return None if lift is None else -lift.value


def _kl(evidence: Evidence) -> float | None:
    kl = evidence.measures.kl
    return None if kl is None else kl.value


def _win_rate(evidence: Evidence) -> float | None:
    """Upper bound against the start: a policy shown to be worse is refused, one with too few judged responses is not."""
    rate = evidence.win_rate("start")
    return None if rate is None else rate.high


def _champion_win_rate(evidence: Evidence) -> float | None:
    """The estimate itself: the champion is replaced by a policy about as good or better."""
    rate = evidence.win_rate("champion")
    return None if rate is None else rate.value


RULES: tuple[GateRule, ...] = (
    GateRule("accuracy", _accuracy, "above", "min_accuracy", "lower bound of held-out accuracy"),
    GateRule("lift", lambda e: e.measures.lift.start_all.value, "at least", "min_lift", "ranking accuracy minus the start's"),
    GateRule("golden_drop", _golden_drop, "at most", "max_golden_drop", "ranking accuracy lost on golden pairs"),
    GateRule("kl", _kl, "at most", "max_kl", "KL(policy‖start) per response, nats,"),
    GateRule("win_rate", _win_rate, "at least", "min_win_rate", "upper bound of the win rate against the start"),
    GateRule("champion_win_rate", _champion_win_rate, "at least", "min_champion_win_rate", "win rate against the champion"),
)


def decide(gate: GateConfig, evidence: Evidence) -> GateResult:
    """Check every rule that has evidence and a threshold."""
    rules = [result for rule in RULES if (result := rule.check(gate, evidence)) is not None]
    return GateResult(passed=all(rule.passed for rule in rules), rules=rules)

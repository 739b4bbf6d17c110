"""The promotion gate: rules over an evaluation, each with its number, its threshold and a sentence.

**A new rule** is an entry of :data:`RULES` and its threshold in ``GateConfig`` (``dora_core/config/method.py``). A rule without a threshold
is left out of the result; one without evidence (no pairs, no golden pairs, no champion, …) is listed in ``unchecked`` with the reason.

A rule on an :class:`Interval` reads its lower bound and has three outcomes: *met*, the lower bound is above the threshold; *not met*, the
upper bound is below it; *uncertain*, the interval contains it (or no data support the estimate: a win rate at equal length where one side
is always longer). A rule on a single number (changes of ranking accuracy, KL) limits a change by its estimate and is met or not.
The gate *passes* if every rule is met, *cannot tell* if some are uncertain and none is broken, and *fails* otherwise. ``when_uncertain:
promote`` counts uncertain rules as met.

Held-out preferences are evidence as pairs (``accuracy``, ``lift``) or as labels (``label_auc``, with the threshold of ``accuracy``: the AUC
is the accuracy over all pairs of a desirable and an undesirable response, chance ½). Where one of the two covers fewer prompts than
``evaluate.min_group`` and the other does not, the smaller is ignored: its interval is too wide. Without a pair, and without
another rule that compares the policy (labels, win rates), the rule :data:`EVIDENCE` fails the gate: limits on KL alone promote nothing.

Left out: a rule for the worst source or task. The lowest of many estimates is low by chance, so a threshold on it refuses policies for
having many groups; groups are shown with their intervals instead, and a self-training round is guarded by its change
(``tasks/stages/guard.py``).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from dora_core.config.method import GateConfig
from dora_core.evaluation.metrics import Interval, estimate_text
from tasks.stages._compare_facts import Wins
from tasks.stages._evaluate_facts import BenchmarkChange, GateResult, Part, PreferenceMeasures, RuleResult

RELATIONS: dict[str, Callable[[float, float], bool]] = {"above": operator.gt, "at least": operator.ge, "at most": operator.le}


@dataclass(frozen=True)
class Evidence:
    """Input of the rules.

    Attributes:
        wins: outcomes against the opponents of the ``compare`` stage, by their name; empty without one.
        min_group: fewest held-out prompts at which pairs, or labels, count beside the other.
        benchmarks: scores of tasks before and after, by task.
    """

    measures: PreferenceMeasures
    wins: Mapping[str, Wins]
    min_group: int = 1
    benchmarks: Mapping[str, BenchmarkChange] = field(default_factory=dict)

    def win_rate(self, opponent: str) -> Interval | None:
        return self.wins[opponent].win_rate if opponent in self.wins else None

    @property
    def pairs(self) -> Part | None:
        """Measures of all pairs; None if there are too few beside the labels."""
        whole = self.measures.parts.get("all")
        return None if whole is None or self._too_few(whole.accuracy.policy, self._label_auc) else whole

    @property
    def label_auc(self) -> Interval | None:
        """AUC of the policy over labelled responses; None if there are too few beside the pairs."""
        whole, auc = self.measures.parts.get("all"), self._label_auc
        return None if auc is None or self._too_few(auc, whole.accuracy.policy if whole else None) else auc

    @property
    def _label_auc(self) -> Interval | None:
        labels = self.measures.labels
        return labels.auc.policy if labels is not None and labels.auc is not None else None

    def _too_few(self, own: Interval, other: Interval | None) -> bool:
        return other is not None and own.n < self.min_group <= other.n

    def no_pairs(self) -> str:
        """Reason why the rules on pairs have no evidence."""
        whole = self.measures.parts.get("all")
        if whole is None:
            return "no held-out prompt has a pair of responses"
        return f"pairs of {whole.accuracy.policy.n} prompts only, fewer than evaluate.min_group = {self.min_group}; the labels decide"

    def no_labels(self) -> str | None:
        """Reason why the rule on labels has no evidence; None for data without unpaired records."""
        labels, auc = self.measures.labels, self._label_auc
        if labels is None:
            return None
        if auc is None:
            return f"all {labels.desirable + labels.undesirable} labelled held-out responses have the same label"
        return f"labels of {auc.n} prompts only, fewer than evaluate.min_group = {self.min_group}; the pairs decide"


@dataclass(frozen=True)
class GateRule:
    """A rule of the gate: ``value``, or its lower bound, in ``relation`` to the threshold.

    Attributes:
        value: the number that is checked; an interval is checked by its lower bound. None without evidence for the rule.
        threshold: field of ``GateConfig``.
        subject: the sentence before ``relation``.
        missing: reason for the lack of evidence; None if the rule does not apply to this data.
        compares: whether the rule compares the policy with preferences or another policy, rather than limiting a change.
        unsupported: reason why the data do not support the estimate, so that the rule cannot be met; None where they do.
    """

    name: str
    value: Callable[[Evidence], Interval | float | None]
    relation: Literal["above", "at least", "at most"]
    threshold: str
    subject: str
    missing: Callable[[Evidence], str | None]
    compares: bool = True
    unsupported: Callable[[Evidence], str | None] = lambda evidence: None

    def check(self, gate: GateConfig, evidence: Evidence) -> RuleResult | None:
        """Return the result, or None without evidence or threshold."""
        found, threshold = self.value(evidence), getattr(gate, self.threshold)
        if found is None or threshold is None:
            return None
        value = found.low if isinstance(found, Interval) else found
        met, doubt, estimate = RELATIONS[self.relation](value, threshold), None, ""
        if isinstance(found, Interval):
            estimate = f", of {estimate_text(found, '.3f')}"
            doubt = self.unsupported(evidence)
            if doubt is None and not met and found.high >= threshold:
                doubt = f"the interval contains {threshold:g}"
        message = f"{self.subject} {self.relation} {threshold:g}: {value:.4g}{estimate}" + (f", cannot tell: {doubt}" if doubt else "")
        passed = gate.when_uncertain == "promote" if doubt else met
        return RuleResult(name=self.name, passed=passed, value=value, threshold=threshold, message=message, uncertain=doubt is not None)


def _accuracy(evidence: Evidence) -> Interval | None:
    pairs = evidence.pairs
    return None if pairs is None else pairs.accuracy.policy


def _lift(evidence: Evidence) -> float | None:
    lift = evidence.measures.lift.start_all
    return None if lift is None or evidence.pairs is None else lift.value


def _golden_drop(evidence: Evidence) -> float | None:
    lift = evidence.measures.lift.start_golden
    return None if lift is None else -lift.value


def _kl(evidence: Evidence) -> float | None:
    kl = evidence.measures.kl
    return None if kl is None else kl.value


def _benchmark_drop(evidence: Evidence) -> float | None:
    """Largest loss of any task's score."""
    return max((-task.change.value for task in evidence.benchmarks.values()), default=None)


def _equal_length(evidence: Evidence) -> Interval | None:
    return evidence.wins["start"].length_controlled if "start" in evidence.wins else None


def _one_sided(evidence: Evidence) -> str | None:
    """Reason why a win rate at equal length is an extrapolation."""
    wins = evidence.wins["start"]
    if not wins.is_extrapolated:
        return None
    longer = f"the policy's response is longer than the start's in {wins.longer:.0%} of the pairs"
    return f"{longer}, so no data support a win rate at equal length"


def _not_compared(evidence: Evidence) -> str:
    return "the policy was not compared with the start (compare)"


RULES: tuple[GateRule, ...] = (
    GateRule("accuracy", _accuracy, "above", "min_accuracy", "lower bound of held-out accuracy", Evidence.no_pairs),
    GateRule(
        "label_auc", lambda e: e.label_auc, "above", "min_accuracy", "lower bound of the AUC over held-out labels", Evidence.no_labels
    ),
    GateRule("lift", _lift, "at least", "min_lift", "ranking accuracy minus the start's", Evidence.no_pairs),
    GateRule(
        "golden_drop",
        _golden_drop,
        "at most",
        "max_golden_drop",
        "ranking accuracy lost on golden pairs",
        lambda e: "no held-out pair has a golden response",
        compares=False,
    ),
    GateRule(
        "kl",
        _kl,
        "at most",
        "max_kl",
        "KL(policy‖start) per response, nats,",
        lambda e: "no response was sampled (evaluate.kl_prompts)",
        compares=False,
    ),
    GateRule(
        "benchmark_drop",
        _benchmark_drop,
        "at most",
        "max_benchmark_drop",
        "largest loss of a benchmark's score",
        lambda e: None,
        compares=False,
    ),
    GateRule(
        "win_rate",
        lambda e: e.win_rate("start"),
        "above",
        "min_win_rate",
        "lower bound of the win rate against the start",
        _not_compared,
    ),
    GateRule(
        "win_rate_equal_length",
        _equal_length,
        "above",
        "min_win_rate_equal_length",
        "lower bound of the win rate against the start at equal length",
        _not_compared,
        unsupported=_one_sided,
    ),
    GateRule(
        "champion_win_rate",
        lambda e: e.win_rate("champion"),
        "at least",
        "min_champion_win_rate",
        "lower bound of the win rate against the champion",
        lambda e: "the policy was not compared with a champion",
    ),
)

EVIDENCE = "evidence"
"""Name of the rule that fails where nothing held out could be compared; it is left out where something was."""


def decide(gate: GateConfig, evidence: Evidence) -> GateResult:
    """Check every rule that has evidence and a threshold; refuse a policy that nothing was compared with."""
    found = {rule.name: rule.check(gate, evidence) for rule in RULES}
    rules = [result for result in found.values() if result is not None]
    wanted = [rule for rule in RULES if found[rule.name] is None and getattr(gate, rule.threshold) is not None]
    unchecked = {rule.name: reason for rule in wanted if (reason := rule.missing(evidence)) is not None}
    if not evidence.measures.parts and not any(found[rule.name] for rule in RULES if rule.compares):
        why = "; ".join(f"{rule.name}: {unchecked[rule.name]}" for rule in wanted if rule.compares and rule.name in unchecked)
        message = f"at least 1 rule compares the policy with held-out preferences or another policy: 0 ({why})"
        rules.append(RuleResult(name=EVIDENCE, passed=False, value=0.0, threshold=1.0, message=message))
    return GateResult(passed=all(rule.passed for rule in rules), rules=rules, unchecked=unchecked)

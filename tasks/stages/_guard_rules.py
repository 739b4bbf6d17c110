"""The guard rails of a self-training round. **A new one** is a decorated function here, and its threshold in ``GuardConfig``
(``dora_core/config/rounds.py``).

A function reads one piece of :class:`Evidence` and returns a :class:`Found`, or None where the evidence does not cover the rule. Rules are
judged and shown in the order of this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dora_core.config.rounds import GuardConfig
from tasks.stages._guard_facts import Rule

if TYPE_CHECKING:
    from dora_core.evaluation.diversity import Diversity
    from tasks.stages import mix
    from tasks.stages._calibrate_facts import Facts as CalibrateFacts
    from tasks.stages._evaluate_facts import Facts as EvaluateFacts

NORMAL_95 = 1.645  # one-sided


@dataclass(frozen=True)
class Samples:
    """Diversity of the round's samples, and of as many samples of round 1 (None: this is round 1)."""

    now: Diversity
    first: Diversity | None


@dataclass(frozen=True)
class Policy:
    """Evaluation of the round's policy, and of the policy before it (None in the first round)."""

    now: EvaluateFacts
    before: EvaluateFacts | None


@dataclass(frozen=True)
class Evidence:
    """Results of the round so far; None: not given."""

    samples: Samples | None = None
    mix: mix.Facts | None = None
    calibration: CalibrateFacts | None = None
    policy: Policy | None = None


@dataclass(frozen=True)
class Found:
    """Finding of a rule: the number to judge (None: too little evidence) and a sentence about it."""

    value: float | None
    message: str


Look = Callable[[GuardConfig, Any], Found | None]
Limit = Callable[[GuardConfig, Any], float | None]


@dataclass(frozen=True)
class GuardRail:
    """A rule's descriptor.

    Attributes:
        needs: field of :class:`Evidence` that it reads.
        key: of ``rounds.guard``: its threshold; null switches the rule off.
        at_least: the value must not fall below the threshold; else not exceed it.
        remedy: next step where it is broken.
        limit: the threshold, where it is not the setting itself.
    """

    name: str
    needs: str
    key: str
    at_least: bool
    remedy: str
    look: Look
    limit: Limit | None = None

    def judge(self, config: GuardConfig, evidence: Evidence) -> Rule | None:
        """Judge the rule; None without evidence for it."""
        own = getattr(evidence, self.needs)
        found = None if own is None else self.look(config, own)
        if found is None:
            return None
        threshold = getattr(config, self.key) if self.limit is None else self.limit(config, own)
        passed, message = None, found.message
        if found.value is not None and threshold is not None:
            passed = found.value >= threshold if self.at_least else found.value <= threshold
            message = f"{message}; {'at least' if self.at_least else 'at most'} {threshold:.3g}"
        elif found.value is not None:
            message = f"{message}; not judged"
        return Rule(name=self.name, value=found.value, threshold=threshold, passed=passed, message=message)


GUARD_RAILS: dict[str, GuardRail] = {}
"""By name, in the order of this file."""


def guard_rail(*, needs: str, remedy: str, at_least: str = "", at_most: str = "", limit: Limit | None = None) -> Callable[[Look], Look]:
    """Register a rule by the function's name; ``at_least`` or ``at_most`` is its key of ``GuardConfig``. See :class:`GuardRail`."""

    def register(look: Look) -> Look:
        assert bool(at_least) != bool(at_most), f"{look.__name__}: a guard rail has one threshold"
        GUARD_RAILS[look.__name__] = GuardRail(look.__name__, needs, at_least or at_most, bool(at_least), remedy, look, limit)
        return look

    return register


# -------------------------------------------------------------------------------------------------------------- samples


def _share_of_round_1(config: GuardConfig, samples: Samples) -> float | None:
    if samples.first is None or samples.first.distinct_2 is None or config.min_distinct is None:
        return None
    return config.min_distinct * samples.first.distinct_2


@guard_rail(
    needs="samples",
    at_least="min_distinct",
    limit=_share_of_round_1,
    remedy="the vocabulary of the samples has shrunk: compare them with round 1's, raise generate.temperature or top_p",
)
def distinct(config: GuardConfig, samples: Samples) -> Found:
    now, floor = samples.now, _share_of_round_1(config, samples)
    if now.distinct_2 is None:
        return Found(None if floor is None else 0.0, f"none of {now.samples} samples has two words")
    message = f"{now.distinct_2:.1%} of the bigrams in {now.samples} samples are different ones"
    if floor is not None and samples.first is not None and samples.first.distinct_2:
        message += f", {now.distinct_2 / samples.first.distinct_2:.0%} of round 1's {samples.first.distinct_2:.1%}"
    return Found(now.distinct_2, message)


@guard_rail(
    needs="samples",
    at_most="max_self_bleu",
    remedy="the samples of a prompt are all alike: raise generate.temperature (0 is greedy) or top_p",
)
def self_bleu(config: GuardConfig, samples: Samples) -> Found:
    now = samples.now
    if now.self_bleu is None or now.identical is None:
        return Found(None, "one sample a prompt: self-BLEU needs two")
    return Found(
        now.self_bleu, f"self-BLEU of a prompt's samples is {now.self_bleu:.3f}, {now.identical:.0%} of them repeat an earlier one"
    )


@guard_rail(
    needs="samples",
    at_most="max_one_answer",
    remedy="the policy answers every prompt alike: look at the judge, which may reward that answer",
)
def one_answer(config: GuardConfig, samples: Samples) -> Found:
    now = samples.now
    if now.one_answer is None:
        return Found(None, "one prompt: nothing to compare its samples with")
    return Found(now.one_answer, f"{now.one_answer:.0%} of {now.prompts} prompts have the same most common answer")


# -------------------------------------------------------------------------------------------------------------- mixture


@guard_rail(
    needs="mix",
    at_least="min_golden_share",
    remedy="raise rounds.mix.given_fraction, or set rounds.mix.given to golden",
)
def golden_share(config: GuardConfig, mixture: mix.Facts) -> Found:
    return Found(mixture.golden_share, f"{mixture.golden_share:.1%} of the mixture is golden")


@guard_rail(
    needs="calibration",
    at_least="min_ess",
    remedy="few responses carry h: set calibration.temper to auto, or add golden responses like them",
)
def ess(config: GuardConfig, calibration: CalibrateFacts) -> Found:
    message = f"effective sample size of h is {calibration.ess:.1%}"
    if calibration.tau < 1.0:
        message += f", tempered with τ = {calibration.tau:.2f} from {calibration.ess_by_form[calibration.form]:.1%}"
    return Found(calibration.ess, message)


# --------------------------------------------------------------------------------------------------------------- policy


@guard_rail(
    needs="policy",
    at_most="max_kl",
    remedy="train less per round: rounds.optimization with fewer epochs or a lower learning rate, or a larger align.loss.beta",
)
def kl(config: GuardConfig, policy: Policy) -> Found | None:
    if policy.now.kl is None:
        return None
    return Found(policy.now.kl.value, f"KL(policy‖start) is {policy.now.kl.value:.2f} nats per response")


@guard_rail(
    needs="policy",
    at_most="max_source_regression",
    remedy="look at that source in the evaluation, and at its share of the mixture",
)
def source_regression(config: GuardConfig, policy: Policy) -> Found | None:
    """The largest lower bound of a fall in ranking accuracy, over sources with enough held-out prompts in both rounds."""
    if policy.before is None:
        return None
    now, before = policy.now.by_source, policy.before.by_source
    falls = {}
    for name in now.keys() & before.keys():
        sides = [(side[name].ranking_policy, side[name].accuracy.n) for side in (before, now)]
        if min(n for _, n in sides) >= config.min_source_prompts:
            smoothed = [((p * n + 1) / (n + 2), n) for p, n in sides]  # no error of 0 at accuracies of 0 and 1
            error = math.sqrt(sum(p * (1 - p) / n for p, n in smoothed))
            falls[name] = sides[0][0] - sides[1][0] - NORMAL_95 * error
    if not falls:
        return Found(None, f"no source has {config.min_source_prompts} held-out prompts in both rounds")
    worst = min(falls, key=lambda name: (-falls[name], name))
    then, new = before[worst].ranking_policy, now[worst].ranking_policy
    message = f"ranking accuracy of {worst} went from {then:.3f} to {new:.3f} on {now[worst].accuracy.n} prompts"
    message += f", a fall of {falls[worst]:.3f} or more" if falls[worst] > 0 else ", no fall beyond chance"
    return Found(falls[worst], message)

"""Measures of the ``evaluate`` stage on held-out preference pairs, from scores of policy, start and twin.

Accuracy and margin read the implicit reward log π − log π_start, which is identically 0 for the start; ranking reads the likelihood per
token, which all models have. Every number has a bootstrap interval over prompts; lifts are paired differences.

Shape legend: P preference pairs, N responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from dora_core.config.method import EvaluateConfig
from dora_core.evaluation.metrics import (
    GroupInterval,
    Interval,
    Pairs,
    Reliability,
    RewardConfidence,
    cluster_bootstrap,
    correct,
    padded,
    paired_difference,
    reward_calibration,
    reward_confidence,
    spearman_within,
    worst_group,
)
from dora_core.strict_model import StrictModel

Scores = dict[str, np.ndarray]
HISTOGRAM_BINS = 30


class ByModel(StrictModel):
    """A measure of each model; the start has no implicit reward, and a twin is trained only where the configuration wants one."""

    policy: Interval
    start: Interval | None = None
    twin: Interval | None = None

    def measured(self) -> dict[str, Interval]:
        """The models that have the measure."""
        return {name: interval for name, interval in self if interval is not None}


class Part(StrictModel):
    """Measures of a part of the pairs."""

    accuracy: ByModel = Field(description="Share of pairs whose better response has the larger implicit reward.")
    margin: ByModel = Field(description="Implicit reward of the better response minus that of the worse, nats.")
    ranking: ByModel = Field(description="Share of pairs whose better response has the larger likelihood per token.")


class MarginHistogram(StrictModel):
    """Number of pairs per bin of the margin."""

    edges: list[float]
    policy: list[int]
    twin: list[int] | None = None


class Group(StrictModel):
    """Measures of the pairs of one source or task. Prompts weigh the same in ``accuracy``, pairs in the other numbers."""

    accuracy: Interval
    accuracy_policy: float
    ranking_policy: float
    ranking_start: float
    n: int = Field(description="Pairs.")


class Lift(StrictModel):
    """Paired differences: ranking accuracy of policy minus start on each part, preference accuracy of policy minus twin."""

    start_all: Interval
    start_golden: Interval | None = None
    start_synthetic: Interval | None = None
    twin_all: Interval | None = None

    def measured(self) -> dict[str, Interval]:
        """The differences of which there are pairs."""
        return {name: interval for name, interval in self if interval is not None}


class RewardCalibration(Reliability):
    """Calibration of σ(β · margin) as the probability that the better response wins."""

    beta: float


class RewardCorrelation(StrictModel):
    """Spearman's ρ of a score with the measured rewards within a prompt; null where no record has two different rewards and scores."""

    implicit: Interval | None = Field(description="Of the policy's implicit reward.")
    likelihood: Interval | None = Field(description="Of the policy's likelihood per token.")
    likelihood_start: Interval | None = Field(description="Of the start's likelihood per token.")


class PreferenceMeasures(StrictModel):
    """Everything that the ``evaluate`` stage measures."""

    parts: dict[str, Part] = Field(description="all; golden and synthetic where there are such pairs.")
    margins: MarginHistogram
    reward_confidence: RewardConfidence
    by_source: dict[str, Group] = Field(description="By the source of the better response.")
    by_task: dict[str, Group]
    worst_group: GroupInterval | None = Field(description="Lowest accuracy among the groups of enough prompts.")
    reward_calibration: RewardCalibration
    reward_correlation: RewardCorrelation
    lift: Lift
    kl: Interval | None = Field(description="KL(policy‖start) per sampled response, nats; null where none is sampled.")


@dataclass(frozen=True)
class HeldOut:
    """Held-out pairs and the scores of every model on them.

    Attributes:
        implicit_N: log π − log π_start per response, of policy and twin.
        likelihood_N: log-likelihood per token and response, of policy, twin and start.
        prompt_P: hash of each pair's prompt.
        golden_P: whether a trusted response takes part in the pair.
        groups: group of each pair by grouping; None where it has none.
    """

    pairs: Pairs
    implicit_N: Scores
    likelihood_N: Scores
    prompt_P: np.ndarray
    golden_P: np.ndarray
    groups: Mapping[str, np.ndarray]
    evaluate: EvaluateConfig

    @property
    def margins(self) -> Scores:
        return {name: lr[self.pairs.winner_P] - lr[self.pairs.loser_P] for name, lr in self.implicit_N.items()}

    @property
    def rankings(self) -> Scores:
        return {name: lp[self.pairs.winner_P] - lp[self.pairs.loser_P] for name, lp in self.likelihood_N.items()}

    @property
    def parts(self) -> Scores:
        """Masks of the parts that have pairs."""
        masks = {"all": np.ones(len(self.golden_P), dtype=bool), "golden": self.golden_P, "synthetic": ~self.golden_P}
        return {name: mask for name, mask in masks.items() if mask.any()}

    def mean(self, values_P: np.ndarray, mask: np.ndarray) -> Interval:
        return cluster_bootstrap(values_P[mask], self.prompt_P[mask], *_bootstrap(self.evaluate))


def measure(held_out: HeldOut, beta: float, kl: Interval | None, correlation: RewardCorrelation) -> PreferenceMeasures:
    """Measure the held-out pairs.

    Args:
        beta: scale of the policy's implicit reward.
    """
    margins, tables = held_out.margins, by_group(held_out)
    calibration = reward_calibration(beta * margins["policy"], held_out.prompt_P, *_bootstrap(held_out.evaluate))
    return PreferenceMeasures(
        parts=by_part(held_out),
        margins=margin_histogram(margins),
        reward_confidence=reward_confidence(margins["policy"], held_out.pairs.gap_P),
        by_source=tables["source"],
        by_task=tables["task"],
        worst_group=worst_group(
            {by: {name: group.accuracy for name, group in table.items()} for by, table in tables.items()}, held_out.evaluate.min_group
        ),
        reward_calibration=RewardCalibration(beta=beta, **dict(calibration)),
        reward_correlation=correlation,
        lift=lifts(held_out),
        kl=kl,
    )


def by_part(held_out: HeldOut) -> dict[str, Part]:
    """Accuracy, margin and ranking of every part."""
    margins, rankings = held_out.margins, held_out.rankings
    return {
        part: Part(
            accuracy=ByModel(**{name: held_out.mean(correct(m), mask) for name, m in margins.items()}),
            margin=ByModel(**{name: held_out.mean(m, mask) for name, m in margins.items()}),
            ranking=ByModel(**{name: held_out.mean(correct(m), mask) for name, m in rankings.items()}),
        )
        for part, mask in held_out.parts.items()
    }


def margin_histogram(margins: Scores) -> MarginHistogram:
    edges = np.histogram_bin_edges(np.concatenate(list(margins.values())), bins=HISTOGRAM_BINS)
    counts = {name: np.histogram(m, edges)[0].tolist() for name, m in margins.items()}
    return MarginHistogram(edges=edges.tolist(), **counts)


def by_group(held_out: HeldOut) -> dict[str, dict[str, Group]]:
    """Measures by source of the better response and by task; pairs without one are left out."""
    margin_P, rankings = held_out.margins["policy"], held_out.rankings
    tables: dict[str, dict[str, Group]] = {}
    for by, names_P in held_out.groups.items():
        tables[by] = {}
        for name in sorted({*names_P} - {None}):
            mask = np.array(names_P == name, dtype=bool)
            tables[by][name] = Group(
                accuracy=held_out.mean(correct(margin_P), mask),
                accuracy_policy=float(correct(margin_P[mask]).mean()),
                ranking_policy=float(correct(rankings["policy"][mask]).mean()),
                ranking_start=float(correct(rankings["start"][mask]).mean()),
                n=int(mask.sum()),
            )
    return tables


def lifts(held_out: HeldOut) -> Lift:
    """Ranking of policy minus start on every part, accuracy of policy minus twin overall."""
    margins, rankings, prompt_P = held_out.margins, held_out.rankings, held_out.prompt_P
    policy_P, start_P = correct(rankings["policy"]), correct(rankings["start"])
    options = _bootstrap(held_out.evaluate)
    found = {
        f"start_{part}": paired_difference(policy_P[mask], start_P[mask], prompt_P[mask], *options) for part, mask in held_out.parts.items()
    }
    if "twin" in margins:
        found["twin_all"] = paired_difference(correct(margins["policy"]), correct(margins["twin"]), prompt_P, *options)
    return Lift(**found)


def rank_correlation(
    score_N: np.ndarray, rewards: list[list[float | None]], prompt_R: np.ndarray, evaluate: EvaluateConfig
) -> Interval | None:
    """Spearman's ρ of a score with the measured rewards of a record's responses, averaged over prompts; None where no record has two
    different rewards and scores.
    """
    record_N = np.repeat(np.arange(len(rewards)), [len(row) for row in rewards])
    reward_N = np.array([np.nan if value is None else value for row in rewards for value in row])
    record_R, row_N = np.unique(record_N[~np.isnan(reward_N)], return_inverse=True)
    rho_R = spearman_within(padded(score_N[~np.isnan(reward_N)], row_N), padded(reward_N[~np.isnan(reward_N)], row_N))
    known = ~np.isnan(rho_R)
    if not known.any():
        return None
    return cluster_bootstrap(rho_R[known], prompt_R[record_R[known]], *_bootstrap(evaluate))


def _bootstrap(evaluate: EvaluateConfig) -> tuple[int, float, int]:
    """Resamples, confidence and seed."""
    return evaluate.bootstrap_samples, evaluate.confidence, evaluate.seed

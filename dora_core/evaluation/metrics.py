"""Held-out preference metrics with bootstrap intervals over prompts.

Shape legend: P preference pairs, K prompts, N responses of a prompt (NaN where it has fewer), B bins, S bootstrap resamples.

A *pair* is two measured responses of one record with different rewards. Pairs of one prompt are not independent, so the
bootstrap resamples prompts, not pairs (a bootstrap over pairs gives too narrow intervals).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dora_core.strict_model import StrictModel

Array = NDArray[Any]

TIE = 1e-9  # rewards closer than this are equal: sums of the same tenths in another order differ by 1e-16


class Interval(StrictModel):
    """Point estimate with its percentile bootstrap interval."""

    value: float
    low: float
    high: float
    n: int = Field(description="Number of prompts in the estimate.")


class GroupInterval(Interval):
    """Estimate of one group of prompts."""

    by: str = Field(description="The grouping, for instance source or task.")
    name: str = Field(description="The group.")


class RewardConfidence(StrictModel):
    """Accuracy by quantile bin of the reward gap."""

    bins: list[float] = Field(description="Mean reward gap of the pairs of each bin.")
    accuracy: list[float]
    count: list[int] = Field(description="Pairs in each bin.")


class Reliability(StrictModel):
    """Calibration of a confidence: the error of all pairs, and a reliability diagram over the bins that have pairs."""

    ece: Interval = Field(description="Expected calibration error: never below 0, and biased upwards by few pairs.")
    confidence: list[float] = Field(description="Mean confidence per bin.")
    accuracy: list[float] = Field(description="Share of correctly ordered pairs per bin.")
    low: list[float] = Field(description="Lower bounds of ``accuracy``.")
    high: list[float] = Field(description="Upper bounds of ``accuracy``.")
    count: list[int] = Field(description="Pairs in each bin.")


class Bounded(Protocol):
    """Number with an interval; None or NaN where undefined."""

    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def sigmoid(x: Array) -> Array:
    """σ(x) = 1/(1 + e^−x), without overflow."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def is_defined(number: float | None) -> bool:
    """Return whether ``number`` is neither None nor NaN."""
    return number is not None and not math.isnan(number)


def estimate_text(estimate: Bounded | None, form: str) -> str:
    """Format as ``"0.712 [0.690, 0.731]"``; a dash without a number, no brackets without an interval.

    Args:
        form: format of each number, for instance ``".3f"``.
    """
    if estimate is None or not is_defined(estimate.value):
        return "–"
    if not is_defined(estimate.low):  # one number per seed, and one seed
        return f"{estimate.value:{form}}"
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


@dataclass(frozen=True)
class Pairs:
    """All strict preferences of a set of records.

    Attributes:
        record_P: position of the record.
        winner_P, loser_P: flat response positions.
        gap_P: reward difference, > 0.
    """

    record_P: Array
    winner_P: Array
    loser_P: Array
    gap_P: Array


def preference_pairs(rewards: Sequence[Sequence[float | None]]) -> Pairs:
    """Return every (better, worse) pair of every record; unmeasured rewards and ties give none."""
    rows: list[tuple[int, int, int, float]] = []
    offset = 0
    for record, values in enumerate(rewards):
        measured = [(i, v) for i, v in enumerate(values) if v is not None and not math.isnan(v)]
        rows += [(record, offset + i, offset + j, v - w) for i, v in measured for j, w in measured if v > w]
        offset += len(values)
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return Pairs(columns[0].astype(int), columns[1].astype(int), columns[2].astype(int), columns[3])


def cluster_bootstrap(values_P: Array, cluster_P: Array, samples: int, confidence: float, seed: int) -> Interval:
    """Compute the mean of ``values_P`` with equal weight of prompts (clusters), and an interval that resamples prompts.

    Args:
        values_P: finite numbers.
        cluster_P: prompt of each value, any integers.
        samples: resamples S.
        confidence: in (0, 1).

    Returns:
        Interval with the value itself as bounds for a single prompt; NaN without prompts.
    """
    if len(values_P) == 0:
        return Interval(value=math.nan, low=math.nan, high=math.nan, n=0)
    means_K = cluster_means(values_P, cluster_P)
    low, high = percentiles(means_K[draws(len(means_K), samples, seed)].mean(axis=1), confidence)
    return Interval(value=float(means_K.mean()), low=float(low), high=float(high), n=len(means_K))


def cluster_means(values_P: Array, cluster_P: Array) -> Array:
    """Compute the mean of the values of every prompt: (K,)."""
    _, inverse_P = np.unique(cluster_P, return_inverse=True)
    means_K: Array = np.bincount(inverse_P, values_P) / np.bincount(inverse_P)
    return means_K


def draws(prompts: int, samples: int, seed: int) -> Array:
    """Draw the prompts of every resample: (S, K). Equal arguments draw the same ones, so comparisons stay paired."""
    return np.random.default_rng(seed).integers(0, prompts, size=(samples, prompts))


def draw_counts(prompts: int, samples: int, seed: int) -> Array:
    """Count how often :func:`draws` takes each prompt, (S, K) floats: a statistic of per-prompt sums is then a matrix product."""
    flat = draws(prompts, samples, seed) + prompts * np.arange(samples)[:, None]
    return np.bincount(flat.ravel(), minlength=samples * prompts).reshape(samples, prompts).astype(np.float64)


def percentiles(values_S: Array, confidence: float) -> Array:
    """Return (low, high) along the first axis; a resample with an undefined statistic (NaN) is left out."""
    tail = (1.0 - confidence) / 2.0
    ends: Array = np.nanquantile(values_S, [tail, 1.0 - tail], axis=0)
    return ends


def worst_group(tables: Mapping[str, Mapping[str, Interval]], min_group: int) -> GroupInterval | None:
    """Find the group with the lowest value over several groupings, e.g. ``{"source": {"human": Interval(…)}}``.

    Groups of fewer than ``min_group`` prompts are skipped: the lowest of many small ones is low by chance. Groupings with a single
    remaining group are skipped too: it has no other to be compared with. None if no grouping is left.
    """
    candidates = []
    for by, groups in tables.items():
        large = {name: estimate for name, estimate in groups.items() if estimate.n >= min_group}
        if len(large) > 1:
            candidates += [GroupInterval(by=by, name=name, **dict(estimate)) for name, estimate in large.items()]
    return min(candidates, key=lambda group: group.value, default=None)


def paired_difference(a_P: Array, b_P: Array, cluster_P: Array, samples: int, confidence: float, seed: int) -> Interval:
    """Compute mean(a − b) on the same pairs, with an interval far tighter than the difference of two separate ones."""
    return cluster_bootstrap(a_P - b_P, cluster_P, samples, confidence, seed)


def correct(margins_P: Array) -> Array:
    """Return 1 where the better response has the larger implicit reward, ½ for an exact tie, else 0."""
    return np.where(margins_P > 0, 1.0, np.where(margins_P == 0, 0.5, 0.0))


def reward_confidence(margins_P: Array, gap_P: Array, bins: int = 8) -> RewardConfidence:
    """Compute accuracy by quantile bin of the reward gap; it rises with the gap in a policy that learned the preference."""
    if len(gap_P) == 0:
        return RewardConfidence(bins=[], accuracy=[], count=[])
    edges = np.unique(np.quantile(gap_P, np.linspace(0, 1, bins + 1)))
    index_P = np.clip(np.searchsorted(edges, gap_P, side="right") - 1, 0, max(len(edges) - 2, 0))
    filled = [k for k in range(max(len(edges) - 1, 1)) if (index_P == k).any()]
    return RewardConfidence(
        bins=[float(gap_P[index_P == k].mean()) for k in filled],
        accuracy=[float(correct(margins_P[index_P == k]).mean()) for k in filled],
        count=[int((index_P == k).sum()) for k in filled],
    )


def reward_calibration(margins_P: Array, cluster_P: Array, samples: int, confidence: float, seed: int, bins: int = 10) -> Reliability:
    """Measure the calibration of σ(margin) as a probability that the better response wins: expected calibration error, reliability bins.

    A pair is stored with its better response first, so its label would always be 1. Each pair therefore counts in both orientations,
    (σ(m), 1) and (σ(−m), 0): the base rate is ½. They mirror each other, so half of the diagram is sufficient: the confidence
    max(σ(m), σ(−m)) in [½, 1] against the share of pairs whose better response has the larger implicit reward (Guo et al. 2017, eq. 3).
    Prompts have equal weight.

    Args:
        margins_P: implicit reward of the better response minus that of the worse, β included.
    """
    _, prompt_P, pairs_K = np.unique(cluster_P, return_inverse=True, return_counts=True)
    confidence_P = 0.5 + 0.5 * np.tanh(np.abs(margins_P) / 2)  # σ(|m|)
    bin_P = np.minimum(((confidence_P - 0.5) * 2 * bins).astype(int), bins - 1)
    columns = [np.ones(len(margins_P)), confidence_P, correct(margins_P)]
    cell_P = prompt_P * bins + bin_P
    sums_K3B = np.stack(
        [np.bincount(cell_P, c / pairs_K[prompt_P], minlength=len(pairs_K) * bins).reshape(-1, bins) for c in columns], axis=1
    )
    total_3B = sums_K3B.sum(axis=0)
    resampled = (draw_counts(len(pairs_K), samples, seed) @ sums_K3B.reshape(len(pairs_K), -1)).reshape(samples, 3, bins)
    low, high = percentiles(_ece(resampled), confidence)
    filled = np.flatnonzero(total_3B[0])
    with np.errstate(invalid="ignore"):  # a resample without any pair of a bin
        ends_2B = percentiles(resampled[:, 2, filled] / resampled[:, 0, filled], confidence)
    return Reliability(
        ece=Interval(value=float(_ece(total_3B)), low=float(low), high=float(high), n=len(pairs_K)),
        confidence=(total_3B[1, filled] / total_3B[0, filled]).tolist(),
        accuracy=(total_3B[2, filled] / total_3B[0, filled]).tolist(),
        low=ends_2B[0].tolist(),
        high=ends_2B[1].tolist(),
        count=np.bincount(bin_P, minlength=bins)[filled].tolist(),
    )


def _ece(sums_3B: Array) -> Array:
    """Compute Σ_b |Σ confidence − Σ correct| / Σ 1 from (…, 3, B) sums of (1, confidence, correct)."""
    weight, confidence, right = np.moveaxis(sums_3B, -2, 0)
    error: Array = np.abs(confidence - right).sum(axis=-1) / weight.sum(axis=-1)
    return error


# ---------------------------------------------------------------------------------------------- among a prompt's responses


def padded(values_N: Array, prompt_N: Array) -> Array:
    """Pad ragged lists to (K, most responses of a prompt) with NaN; ``prompt_N`` holds 0 … K−1 in ascending order."""
    counts_K = np.bincount(prompt_N)
    column_N = np.arange(len(prompt_N)) - np.repeat(np.cumsum(counts_K) - counts_K, counts_K)
    out = np.full((len(counts_K), counts_K.max(initial=0)), np.nan)
    out[prompt_N, column_N] = values_N
    return out


def pair_accuracy(score_KN: Array, reward_KN: Array) -> Array:
    """Compute the share of a prompt's pairs with different rewards that the score orders alike (½ for a tie of scores): (K,), NaN
    without a pair."""
    better = reward_KN[:, :, None] - reward_KN[:, None, :] > TIE
    score = score_KN[:, :, None] - score_KN[:, None, :]
    points = np.where(better, np.where(score > 0, 1.0, np.where(score == 0, 0.5, 0.0)), 0.0)
    with np.errstate(invalid="ignore"):
        shares_K: Array = points.sum(axis=(1, 2)) / better.sum(axis=(1, 2))
    return shares_K


def spearman_within(x_KN: Array, y_KN: Array) -> Array:
    """Compute Spearman's ρ among the responses of each prompt: (K,), NaN where x or y is constant. NaN entries (padding) are left out."""
    x, y = _centred_ranks(x_KN), _centred_ranks(y_KN)
    with np.errstate(invalid="ignore"):
        rho_K: Array = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return rho_K


def _centred_ranks(x_KN: Array) -> Array:
    """Return average ranks minus their mean per row, 0 for padding: ½ Σ_k sign(x_j − x_k), which is rank_j − (n + 1)/2."""
    gap = x_KN[:, :, None] - x_KN[:, None, :]
    ranks_KN: Array = 0.5 * np.where(np.isnan(gap) | (np.abs(gap) <= TIE), 0.0, np.sign(gap)).sum(axis=2)
    return ranks_KN

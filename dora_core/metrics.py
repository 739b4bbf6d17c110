"""Held-out preference metrics with bootstrap intervals over prompts.

Shape legend: P preference pairs, K prompts, S bootstrap resamples.

A *pair* is two measured responses of one record with different rewards. Pairs of one prompt are not independent, so the
bootstrap resamples prompts, not pairs (a bootstrap over pairs gives intervals that are too narrow).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Interval:
    """A point estimate with its percentile bootstrap interval; ``n`` is the number of prompts behind it."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


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
    """Every (better, worse) pair of every record; unmeasured rewards and ties give none."""
    rows: list[tuple[int, int, int, float]] = []
    offset = 0
    for record, values in enumerate(rewards):
        measured = [(i, v) for i, v in enumerate(values) if v is not None and not math.isnan(v)]
        rows += [(record, offset + i, offset + j, v - w) for i, v in measured for j, w in measured if v > w]
        offset += len(values)
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return Pairs(columns[0].astype(int), columns[1].astype(int), columns[2].astype(int), columns[3])


def cluster_bootstrap(values_P: Array, cluster_P: Array, samples: int, confidence: float, seed: int) -> Interval:
    """Mean of ``values_P`` where every prompt (cluster) weighs the same, with an interval that resamples prompts.

    Args:
        values_P: finite numbers.
        cluster_P: prompt of each value, any integers.
        samples: resamples S.
        confidence: in (0, 1).

    Returns:
        Interval with NaN bounds replaced by the value where there is a single prompt; value NaN where there is none.
    """
    if len(values_P) == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    _, inverse_P = np.unique(cluster_P, return_inverse=True)
    means_K = np.bincount(inverse_P, values_P) / np.bincount(inverse_P)
    rng = np.random.default_rng(seed)
    draws_SK = rng.integers(0, len(means_K), size=(samples, len(means_K)))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means_K[draws_SK].mean(axis=1), [tail, 1.0 - tail])
    return Interval(float(means_K.mean()), float(low), float(high), len(means_K))


def paired_difference(a_P: Array, b_P: Array, cluster_P: Array, samples: int, confidence: float, seed: int) -> Interval:
    """Interval of mean(a − b) on the same pairs: far tighter than comparing two separate intervals."""
    return cluster_bootstrap(a_P - b_P, cluster_P, samples, confidence, seed)


def correct(margins_P: Array) -> Array:
    """1 where the better response has the larger implicit reward, ½ for an exact tie."""
    return np.where(margins_P > 0, 1.0, np.where(margins_P == 0, 0.5, 0.0))


def reward_confidence(margins_P: Array, gap_P: Array, bins: int = 8) -> dict[str, list[float]]:
    """Accuracy by quantile bin of the reward gap: a policy that learned the preference is surer where the gap is wide."""
    if len(gap_P) == 0:
        return {"bins": [], "accuracy": [], "count": []}
    edges = np.unique(np.quantile(gap_P, np.linspace(0, 1, bins + 1)))
    index_P = np.clip(np.searchsorted(edges, gap_P, side="right") - 1, 0, max(len(edges) - 2, 0))
    filled = [k for k in range(max(len(edges) - 1, 1)) if (index_P == k).any()]
    return {
        "bins": [float(gap_P[index_P == k].mean()) for k in filled],
        "accuracy": [float(correct(margins_P[index_P == k]).mean()) for k in filled],
        "count": [int((index_P == k).sum()) for k in filled],
    }

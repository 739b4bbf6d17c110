"""Distances between two samples, and the part of a distance explained by chance. Pure numpy.

The distance between two samples of one distribution is not 0; it shrinks as they grow. Each distance here therefore comes with its
*chance* part, a bound that samples of these sizes exceed in at most 1 % of cases; thresholds apply to the excess over it.
Responses to one prompt are alike, so sizes are numbers of prompts, as if a prompt's responses were one observation. This is
slightly conservative.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LEVEL = 0.01
NORMAL_99 = 2.326  # one-sided


def ks_distance(before: ArrayLike, now: ArrayLike) -> float:
    """Kolmogorov-Smirnov distance: the largest difference of two empirical distribution functions, in [0, 1]. Samples are not empty."""
    a, b = np.sort(before), np.sort(now)
    values = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, values, "right") / len(a) - np.searchsorted(b, values, "right") / len(b)).max())


def ks_chance(n: int, m: int) -> float:
    """Critical value √(−ln(LEVEL/2)/2 · (1/n + 1/m)) of the two-sample test (Smirnov 1948; asymptotic, too large for ties)."""
    return math.sqrt(-math.log(LEVEL / 2) / 2 * (1 / n + 1 / m))


def total_variation(before: Floats, now: Floats) -> float:
    """Total variation ½ Σ |now − before| of shares (S,) that sum to 1: the mass that differs, in [0, 1]."""
    return float(np.abs(now - before).sum() / 2)


def total_variation_chance(before: Floats, now: Floats, n: int, m: int) -> float:
    """Bound that the distance of empirical shares of ``n`` and ``m`` independent draws exceeds with probability ≤ LEVEL.

    Its mean is at most ½ Σ √(p(1 − p)(1/n + 1/m)) (Jensen, p the pooled shares), and one draw moves it by at most 1/n or 1/m
    (McDiarmid 1989).
    """
    spread = 1 / n + 1 / m
    p = (n * before + m * now) / (n + m)
    return float(np.sqrt(p * (1 - p) * spread).sum() / 2) + math.sqrt(-math.log(LEVEL) * spread / 2)

"""How far one sample lies from another, and how far chance alone would carry it. Pure numpy.

A distance between two samples of the same distribution is not 0: it shrinks with their sizes. Each distance here comes with its *chance*
part, what samples of these sizes exceed in at most 1 % of cases, and a threshold is meant for what is left of the distance without it.
Responses to one prompt are alike, so sizes are numbers of prompts, as if a prompt's responses were one observation: a little too cautious,
never too bold.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LEVEL = 0.01
NORMAL_99 = 2.326  # one-sided


def ks_distance(before: ArrayLike, now: ArrayLike) -> float:
    """Kolmogorov-Smirnov: the largest difference of two empirical distribution functions, in [0, 1]. Samples are not empty."""
    a, b = np.sort(before), np.sort(now)
    values = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, values, "right") / len(a) - np.searchsorted(b, values, "right") / len(b)).max())


def ks_chance(n: int, m: int) -> float:
    """Critical value √(−ln(LEVEL/2)/2 · (1/n + 1/m)) of the two-sample test (Smirnov 1948; asymptotic, too large for ties)."""
    return math.sqrt(-math.log(LEVEL / 2) / 2 * (1 / n + 1 / m))


def total_variation(before: Floats, now: Floats) -> float:
    """½ Σ |now − before| of shares (S,) that sum to 1: the share that would have to change places. In [0, 1]."""
    return float(np.abs(now - before).sum() / 2)


def total_variation_chance(before: Floats, now: Floats, n: int, m: int) -> float:
    """What the distance of empirical shares of ``n`` and ``m`` independent draws exceeds with probability ≤ LEVEL.

    Its mean is at most ½ Σ √(p(1 − p)(1/n + 1/m)) (Jensen, p the pooled shares), and one draw moves it by at most 1/n or 1/m
    (McDiarmid 1989).
    """
    spread = 1 / n + 1 / m
    p = (n * before + m * now) / (n + m)
    return float(np.sqrt(p * (1 - p) * spread).sum() / 2) + math.sqrt(-math.log(LEVEL) * spread / 2)

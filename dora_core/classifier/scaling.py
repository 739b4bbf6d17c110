"""Scaling of a head's raw logits to calibrated ones, fitted on out-of-fold logits: a temperature, or isotonic regression.

*Isotonic* (Zadrozny & Elkan 2002) is the monotone map with the lowest log-loss, found by pool-adjacent-violators. Smoothing rule: one
golden pseudo-row below all logits and one other pseudo-row above all, so no block is pure and c stays in (0, 1); the map is then
linear between the blocks' mean logits, in logits on both axes. It is strictly increasing between the outer blocks and constant beyond
them, where there is no evidence. Needs some hundred rows of each kind; fewer make few, wide blocks.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dora_core.strict_model import StrictModel

Floats = NDArray[np.float64]


class Scaling(StrictModel):
    """logit ↦ logit/temperature, or where there are knots: piecewise linear through (``at``, ``to``), constant beyond them."""

    temperature: float = Field(1.0, gt=0)
    at: list[float] = Field(default=[], description="Raw logits, strictly increasing; empty = temperature only.")
    to: list[float] = Field(default=[], description="Calibrated logits at these, strictly increasing.")

    def __call__(self, logits: Floats) -> Floats:
        return np.interp(logits, self.at, self.to) if self.at else logits / self.temperature


def fit_scaling(
    kind: Literal["temperature", "isotonic", "none"], logits: Floats, golden: NDArray[np.bool_], weights: Floats | None = None
) -> Scaling:
    """The scaling of one head from out-of-fold logits (N,) of its rows and their weights; the identity where a class is missing."""
    if kind == "none" or len(logits) == 0 or golden.all() or not golden.any():
        return Scaling()
    if kind == "temperature":
        return Scaling(temperature=fit_temperature(logits, golden, weights))
    at, share = isotonic(logits, golden, weights)
    return Scaling(at=at.tolist(), to=np.log(share / (1 - share)).tolist())


def overlap_weights(log_ratio_N: Floats, golden: NDArray[np.bool_]) -> Floats:
    """Weights in (0, 2) under which the prompt tells golden and source no longer apart: 2σ(−r) of golden rows, 2σ(r) of others.

    r is the log-ratio of the prompt's densities. The odds of golden given (x, y) are (N_golden/N_i)·w(y|x)·e^r; weighted, they are
    (N_golden/N_i)·w(y|x), those of the response given the prompt. All are 1 where r = 0. ("Overlap weights", Li, Morgan & Zaslavsky 2018:
    the bounded choice, with the least variance.)
    """
    weights: Floats = 2.0 / (1.0 + np.exp(np.clip(np.where(golden, log_ratio_N, -log_ratio_N), -500, 500)))
    return weights


def log_loss(logits: Floats, golden: NDArray[np.bool_], weights: Floats | None = None) -> float:
    """Mean −log p of the truth, nats."""
    return float(np.average(np.logaddexp(0.0, np.where(golden, -logits, logits)), weights=weights))


def fit_temperature(logits: Floats, golden: NDArray[np.bool_], weights: Floats | None = None) -> float:
    """The T in [1/20, 20] that minimises the log-loss of logits/T. T = 1 is among the candidates: never worse than none.

    log-loss is convex in 1/T, so a golden-section search on log T finds the minimum.
    """
    low, high, ratio = np.log(0.05), np.log(20.0), (np.sqrt(5) - 1) / 2
    while high - low > 1e-5:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if log_loss(logits / np.exp(left), golden, weights) <= log_loss(logits / np.exp(right), golden, weights):
            high = right
        else:
            low = left
    best = float(np.exp((low + high) / 2))
    return best if log_loss(logits / best, golden, weights) < log_loss(logits, golden, weights) else 1.0


def isotonic(logits: Floats, golden: NDArray[np.bool_], weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Blocks of the smoothed isotonic regression of ``golden`` on ``logits``: their mean logit and golden share, both strictly increasing.

    Shares lie in (0, 1): see the module docstring. O(N log N).
    """
    values, inverse = np.unique(logits, return_inverse=True)
    weights = np.ones(len(logits)) if weights is None else weights
    count, positive = np.bincount(inverse, weights), np.bincount(inverse, weights * golden)
    # The pseudo-rows join the outermost logits: (rows, golden rows, sum of logits) per block.
    count[0], positive[0] = count[0] + 1, positive[0] + 1
    count[-1] += 1
    blocks: list[tuple[float, float, float]] = []
    for n, p, value in zip(count, positive, values, strict=True):
        block = (n, p, n * value)
        while blocks and blocks[-1][1] * block[0] >= block[1] * blocks[-1][0]:  # share before ≥ share here
            before = blocks.pop()
            block = (before[0] + block[0], before[1] + block[1], before[2] + block[2])
        blocks.append(block)
    n_B, p_B, sum_B = np.array(blocks).T
    return sum_B / n_B, p_B / n_B

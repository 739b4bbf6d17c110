"""Win rates of a policy's responses against an opponent's, by the scores of a judge.

Shape legend: R records, K distinct prompts of them, N and M responses of policy and opponent (NaN where a record has fewer or a judge
reached no verdict), P judged pairs of a policy's and an opponent's response, S bootstrap resamples.

All functions build on :func:`win_tie_lose`: it compares all N·M pairs of a record and leaves out pairs with a missing score. Intervals
resample prompts, as in ``metrics.py``; the prompt is also the unit of the sign test and of the control for length.

The *length-controlled* win rate estimates the win rate at equal length of both sides' responses. It is the logistic
regression of Dubois et al. 2024 (arXiv 2404.04475, eq. 1), logit P(win) = θ + φ·tanh(Δ/sd Δ) with Δ the difference in length, read at
Δ = 0: σ(θ). Their third term, the difficulty of an instruction, is left out: it needs many models on the same prompts, and here there
is one opponent at a time. A tie counts as half a win. Where one side is nearly always longer, Δ = 0 is an extrapolation and the interval is
too narrow (:meth:`ByLength.is_extrapolated`).

:func:`by_length` also counts the pairs of near-equal length (:data:`NEAR`) by themselves: no model, and fewer pairs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dora_core.evaluation.metrics import TIE, Interval, cluster_bootstrap, cluster_means, draw_counts, percentiles, sigmoid
from dora_core.strict_model import StrictModel

Array = NDArray[Any]

RIDGE = 0.1  # of θ and φ, in prompts: keeps them finite if every pair is won; changes a win rate of 60 prompts by .001
NEWTON_STEPS, CONVERGED = 100, 1e-7
BLOCK = 2_000_000  # pairs × resamples fitted at a time
NEAR = 0.1  # lengths are near-equal if they differ by at most this share of their mean
ONE_SIDED = 0.05  # share of pairs that must lie on either side of equal length; with fewer the regression extrapolates


def win_tie_lose(policy_RN: Array, opponent_RM: Array) -> Array:
    """Compute the shares of (win, tie, lose) per record over all pairs with both scores: (R, 3), NaN without such a pair."""
    gap = policy_RN[:, :, None] - opponent_RM[:, None, :]
    counts_R3 = np.column_stack([kind.sum(axis=(1, 2)) for kind in (gap > TIE, np.abs(gap) <= TIE, gap < -TIE)])
    with np.errstate(invalid="ignore"):
        shares_R3: Array = counts_R3 / counts_R3.sum(axis=1, keepdims=True)
    return shares_R3


def win_rate(shares_R3: Array) -> Array:
    """Return win + ½ tie per record, (R,)."""
    rate_R: Array = shares_R3[:, 0] + 0.5 * shares_R3[:, 1]
    return rate_R


def sign_test(outcome_R: Array, prompt_R: Array) -> float:
    """Compute the exact two-sided p-value of "a prompt is as likely won as lost" (Conover 1999, section 3.4).

    A prompt is won where the mean of its win rates is above ½, lost below, and dropped at ½: a tie has no direction.
    """
    lead_K = cluster_means(outcome_R, prompt_R) - 0.5
    won, lost = int((lead_K > TIE).sum()), int((lead_K < -TIE).sum())
    n = won + lost
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(min(won, lost) + 1)
    tail = np.exp(log_factorial[n] - log_factorial[k] - log_factorial[n - k] - n * math.log(2)).sum()
    return min(1.0, 2.0 * float(tail))


class Outcomes(StrictModel):
    """Shares of wins, ties and losses, which sum to 1, and the win rate (win + ½ tie)."""

    win: Interval
    tie: Interval
    lose: Interval
    win_rate: Interval


def outcomes(shares_R3: Array, prompt_R: Array, samples: int, confidence: float, seed: int) -> Outcomes:
    """Compute every share with its interval; prompts have equal weight."""
    parts = {"win": shares_R3[:, 0], "tie": shares_R3[:, 1], "lose": shares_R3[:, 2], "win_rate": win_rate(shares_R3)}
    return Outcomes(**{name: cluster_bootstrap(values, prompt_R, samples, confidence, seed) for name, values in parts.items()})


def by_group(shares_R3: Array, group_R: Array, prompt_R: Array, samples: int, confidence: float, seed: int) -> dict[str, Outcomes]:
    """Return :func:`outcomes` of every group of records, by its name."""
    return {
        str(name): outcomes(shares_R3[group_R == name], prompt_R[group_R == name], samples, confidence, seed) for name in np.unique(group_R)
    }


# ------------------------------------------------------------------------------------------------------- control for length


class ByLength(StrictModel):
    """The win rate with the difference in length taken out, in two ways, and how lengths differ."""

    length_controlled: Interval = Field(description="Win rate at equal length, by logistic regression on the difference.")
    near_length: Interval | None = Field(
        None, description=f"Win rate of the pairs whose lengths differ by at most {NEAR:.0%} of their mean; null without such a pair."
    )
    longer: float | None = Field(
        None, description="Share of pairs in which the policy's response is longer, pairs of the same length counted half."
    )

    @property
    def is_extrapolated(self) -> bool:
        """Whether one side is longer in nearly all pairs, so that no data support a win rate at equal length."""
        return self.longer is not None and not ONE_SIDED <= self.longer <= 1 - ONE_SIDED


def by_length(
    policy_RN: Array,
    opponent_RM: Array,
    policy_length_RN: Array,
    opponent_length_RM: Array,
    prompt_R: Array,
    samples: int,
    confidence: float,
    seed: int,
) -> ByLength:
    """Compute the win rates at equal length with their intervals; see the module docstring. Needs at least one judged pair.

    Args:
        policy_length_RN, opponent_length_RM: lengths of the responses, in any unit; finite wherever the score is.

    The regression is fitted again for every resample of prompts.
    """
    gap = policy_RN[:, :, None] - opponent_RM[:, None, :]
    judged = ~np.isnan(gap)
    outcome_P = np.where(gap > TIE, 1.0, np.where(gap < -TIE, 0.0, 0.5))[judged]
    prompt_P = np.broadcast_to(prompt_R[:, None, None], gap.shape)[judged]
    longer_P = (policy_length_RN[:, :, None] - opponent_length_RM[:, None, :])[judged]
    mean_P = 0.5 * (policy_length_RN[:, :, None] + opponent_length_RM[:, None, :])[judged]
    near_P = np.abs(longer_P) <= NEAR * mean_P
    shares_K = cluster_means(np.where(longer_P > 0, 1.0, np.where(longer_P < 0, 0.0, 0.5)), prompt_P)
    return ByLength(
        length_controlled=_length_controlled(outcome_P, longer_P, prompt_P, samples, confidence, seed),
        near_length=cluster_bootstrap(outcome_P[near_P], prompt_P[near_P], samples, confidence, seed) if near_P.any() else None,
        longer=float(shares_K.mean()),
    )


def _length_controlled(outcome_P: Array, longer_P: Array, prompt_P: Array, samples: int, confidence: float, seed: int) -> Interval:
    """Compute the length-controlled win rate of pairs, at least one.

    Args:
        outcome_P: 1 win, ½ tie, 0 loss.
        longer_P: length of the policy's response minus that of the opponent's.
    """
    _, prompt_P, pairs_K = np.unique(prompt_P, return_inverse=True, return_counts=True)
    inputs_P = np.tanh(longer_P / (longer_P.std() or 1.0))
    share_P = 1.0 / pairs_K[prompt_P]  # equal weight of prompts

    def at_equal_length(counts_SK: Array) -> Array:
        return sigmoid(_fit_logistic(inputs_P, outcome_P, counts_SK[:, prompt_P] * share_P)[:, 0])

    rows = max(1, BLOCK // len(prompt_P))
    counts_SK = draw_counts(len(pairs_K), samples, seed)
    resampled_S = np.concatenate([at_equal_length(counts_SK[first : first + rows]) for first in range(0, samples, rows)])
    low, high = percentiles(resampled_S, confidence)
    whole = float(at_equal_length(np.ones((1, len(pairs_K))))[0])
    return Interval(value=whole, low=float(low), high=float(high), n=len(pairs_K))


def _fit_logistic(x_P: Array, outcome_P: Array, weight_SP: Array) -> Array:
    """Fit (θ, φ) of S logistic regressions of outcomes in [0, 1] on x with different weights and the ridge: (S, 2).

    Newton's method from 0; steps are clipped to 1, because the curvature vanishes far from the optimum.
    """
    theta_S2 = np.zeros((len(weight_SP), 2))
    for _ in range(NEWTON_STEPS):
        p_SP = sigmoid(theta_S2[:, :1] + theta_S2[:, 1:] * x_P)
        slope_SP, curve_SP = weight_SP * (outcome_P - p_SP), weight_SP * p_SP * (1 - p_SP)
        gradient_S2 = np.stack([slope_SP.sum(axis=1), slope_SP @ x_P], axis=1) - RIDGE * theta_S2
        mixed_S = curve_SP @ x_P
        hessian_S22 = np.stack([curve_SP.sum(axis=1) + RIDGE, mixed_S, mixed_S, curve_SP @ (x_P * x_P) + RIDGE], axis=1).reshape(-1, 2, 2)
        step_S2 = np.clip(np.linalg.solve(hessian_S22, gradient_S2[..., None])[..., 0], -1.0, 1.0)
        theta_S2 += step_S2
        if np.abs(step_S2).max() < CONVERGED:
            break
    return theta_S2

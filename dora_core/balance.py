"""Balance: do the responses of the mixture, weighted by h, look like golden ones? Pure float64 numpy.

If h = p_golden/P, then E_P[h·f] = E_golden[f] for every f. For statistics f of the text that can be checked, whatever the classifier:
:func:`standardised_differences` before and after weighting (Austin 2009; below .1 counts as balanced there). :func:`entropy_balance`
enforces it: of all factors h·exp(θ·f) with E_golden's means, those nearest to h in Kullback-Leibler divergence (Hainmueller 2012; KLIEP
of Sugiyama et al. 2008 is the same dual with h = 1). It corrects what the statistics see and nothing else, at the price of
a smaller effective sample size.

Where prompts differ, golden rows must be weighted to the prompts of the mixture first; the caller does (``golden_weights``).

Legend: N rows of the mixture, G golden rows, F statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of ½·δ·‖θ‖², from the weakest
NEWTON_STEPS, TOLERANCE = 100, 1e-9


@dataclass(frozen=True)
class Moments:
    """Means of golden rows and the common scale of the comparison.

    Attributes:
        scale_F: √((var of golden + var of the mixture)/2), both before weighting by h; 0 where neither varies.
    """

    golden_F: Floats
    scale_F: Floats

    @classmethod
    def of(cls, mixture_NF: Floats, golden_GF: Floats, golden_weights: Floats) -> Moments:
        mean_F = np.average(golden_GF, axis=0, weights=golden_weights)
        variance_F = np.average((golden_GF - mean_F) ** 2, axis=0, weights=golden_weights)
        return cls(mean_F, np.sqrt((variance_F + mixture_NF.var(axis=0)) / 2))

    def standardised(self, values_NF: Floats) -> Floats:
        """(f − golden mean)/scale; 0 for a constant statistic."""
        return np.divide(values_NF - self.golden_F, self.scale_F, out=np.zeros_like(values_NF), where=self.scale_F > 1e-12)


def standardised_differences(mixture_NF: Floats, weights_N: Floats, moments: Moments) -> Floats:
    """Standardised mean differences (F,): (weighted mean of the mixture − mean of golden)/scale."""
    differences: Floats = np.average(moments.standardised(mixture_NF), axis=0, weights=weights_N)
    return differences


@dataclass(frozen=True)
class Tilt:
    """h ↦ h·exp(θ·standardised f). ``ridge`` None: no θ keeps enough effective sample size, θ = 0."""

    theta_F: Floats
    moments: Moments
    ridge: float | None

    def __call__(self, h_N: Floats, statistics_NF: Floats) -> Floats:
        exponent_N = self.moments.standardised(statistics_NF) @ self.theta_F
        tilted: Floats = h_N * np.exp(np.clip(exponent_N, -50, 50))
        return tilted


def entropy_balance(h_N: Floats, mixture_NF: Floats, moments: Moments, ess_floor: float) -> Tilt:
    """θ of the weakest ridge in :data:`RIDGES` whose factors have an effective sample size (share of N) of at least ``ess_floor``.

    θ minimises the convex dual log Σ h·exp(θ·z) + ½·δ·‖θ‖², z the standardised statistics, by Newton's method with backtracking. Its
    gradient is the imbalance E[z] + δ·θ: what a ridge leaves of the imbalance is −δ·θ.
    """
    z_NF = moments.standardised(mixture_NF)
    for ridge in RIDGES:
        theta_F = _newton(np.log(h_N), z_NF, ridge)
        tilted = np.log(h_N) + z_NF @ theta_F
        weights = np.exp(tilted - tilted.max())
        if weights.sum() ** 2 / (len(weights) * np.square(weights).sum()) >= ess_floor:
            return Tilt(theta_F, moments, ridge)
    return Tilt(np.zeros(z_NF.shape[1]), moments, None)


def _newton(log_h_N: Floats, z_NF: Floats, ridge: float) -> Floats:
    theta = np.zeros(z_NF.shape[1])

    def dual(theta: Floats) -> tuple[float, Floats]:
        logits = log_h_N + z_NF @ theta
        peak = logits.max()
        weights = np.exp(logits - peak)
        return float(peak + np.log(weights.sum()) + 0.5 * ridge * theta @ theta), weights / weights.sum()

    value, p_N = dual(theta)
    for _ in range(NEWTON_STEPS):
        mean_F = p_N @ z_NF
        gradient = mean_F + ridge * theta
        if np.abs(gradient).max() < TOLERANCE:
            break
        centred = z_NF - mean_F
        step = np.linalg.solve((centred * p_N[:, None]).T @ centred + ridge * np.eye(len(theta)), gradient)
        length = 1.0
        while length > 1e-8:
            after, p_after = dual(theta - length * step)
            if after <= value - 1e-4 * length * float(gradient @ step):
                break
            length /= 2
        else:
            break  # the gain is below rounding
        theta, value, p_N = theta - length * step, after, p_after
    return theta

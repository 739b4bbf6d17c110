"""Labels of people reversed at random with probability η: its rate, the posterior of one label, and the calibration of margins.

Shape legend: P pairs, B bootstrap resamples.
"""

from __future__ import annotations

import numpy as np

from dora_core.evaluation.metrics import sigmoid
from dora_core.selection.proxy import Floats

BISECTIONS = 40  # of a root in [0, 1]: 1e-12
TEMPERATURES = (0.05, 20.0)


def noise_rate(probability_P: Floats, weight_P: Floats, highest: float = 1.0) -> float:
    """Maximise Σ weight·log[(1 − η)p + η(1 − p)] over η in [0, ``highest``].

    Args:
        probability_P: p = P(people prefer the stated winner), in (0, 1).
        weight_P: ≥ 0.
    """
    return float(noise_rates(probability_P[None], weight_P[None], highest)[0])


def noise_rates(probability_BP: Floats, weight_BP: Floats, highest: float = 1.0) -> Floats:
    """:func:`noise_rate` of B samples, (B,). The likelihood is concave in η, so the root of its slope is bisected."""
    signed_BP = 1 - 2 * probability_BP
    low_B, high_B = np.zeros(len(signed_BP)), np.full(len(signed_BP), highest)
    for _ in range(BISECTIONS):
        middle_B = (low_B + high_B) / 2
        slope_B = (weight_BP * signed_BP / (probability_BP + middle_B[:, None] * signed_BP)).sum(axis=1)
        low_B, high_B = np.where(slope_B > 0, middle_B, low_B), np.where(slope_B > 0, high_B, middle_B)
    noise_B: Floats = np.round((low_B + high_B) / 2, 9)  # a bound is reached exactly
    return noise_B


def label_probability(probability_P: Floats, noise_P: Floats | float) -> Floats:
    """Posterior q = (1 − η)p/((1 − η)p + η(1 − p)) that a label is not reversed (LCPO, arXiv 2509.24159), in [0, 1]."""
    right_P = (1 - noise_P) * probability_P
    q_P: Floats = right_P / (right_P + noise_P * (1 - probability_P))
    return q_P


def temperature(margin_P: Floats, weight_P: Floats) -> float:
    """Factor t in :data:`TEMPERATURES` by which out-of-fold margins are calibrated: minimises the loss of t·m (Guo et al. 2017)."""
    return float(temperatures(margin_P[None], weight_P[None])[0])


def temperatures(margin_BP: Floats, weight_BP: Floats) -> Floats:
    """:func:`temperature` of B samples, (B,)."""
    low_B, high_B = (np.full(len(margin_BP), end) for end in TEMPERATURES)
    for _ in range(BISECTIONS):
        middle_B = (low_B * high_B) ** 0.5
        slope_B = (weight_BP * (sigmoid(middle_B[:, None] * margin_BP) - 1) * margin_BP).sum(axis=1)
        low_B, high_B = np.where(slope_B > 0, low_B, middle_B), np.where(slope_B > 0, middle_B, high_B)
    scale_B: Floats = (low_B * high_B) ** 0.5
    return scale_B


def noise_of_agreement(probability_P: Floats, weight_P: Floats, agreement: float) -> float:
    """Find η in [0, 1] at which the weighted mean of :func:`label_probability` is ``agreement``.

    At the maximum of the likelihood that η is 1 − ``agreement``, the fixed point of expectation maximisation.
    """
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        mean = float(np.average(label_probability(probability_P, middle), weights=weight_P))
        low, high = (middle, high) if mean > agreement else (low, middle)
    return (low + high) / 2


def inside(probability: Floats) -> Floats:
    """Probabilities a little away from 0 and 1: one confident mistake must not decide η alone."""
    return np.clip(probability, 1e-4, 1 - 1e-4)

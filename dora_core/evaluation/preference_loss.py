"""Log-loss of preferences under an implicit reward of unknown scale.

The margin of a policy, log π/π_ref of the better response minus that of the worse, has a scale that depends on β, on the loss and on the
number of steps, and says nothing about which policy orders responses better. So every policy is read at the scale that suits it: the
probability of a preference is σ(s·margin), with s ≥ 0 fitted on the other half of the prompts. At s = 0, a policy that knows nothing,
the loss is log 2.

Shape legend: P pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dora_core.evaluation.metrics import sigmoid

Floats = NDArray[np.float64]

HALVINGS = 60
LARGEST_SCALE = 1e3
"""In units of 1/rms of the margins."""


def calibrated_losses(margin_P: Floats, prompt_P: NDArray[np.integer]) -> Floats:
    """Loss −log σ(s·margin) of every pair, nats, (P,); s is fitted on the pairs of the other half of the prompts.

    Halves are by rank of the prompt among the prompts. Pairs of one prompt weigh 1 together.
    """
    _, rank_P, counts = np.unique(prompt_P, return_inverse=True, return_counts=True)
    weight_P = 1.0 / counts[rank_P]
    half_P = rank_P % 2
    scale = np.array([fit_scale(margin_P[half_P != half], weight_P[half_P != half]) for half in (0, 1)])
    losses: Floats = np.logaddexp(0.0, -scale[half_P] * margin_P)
    return losses


def fit_scale(margin_P: Floats, weight_P: Floats) -> float:
    """The s ≥ 0 that minimises the weighted mean of −log σ(s·margin); 0 without pairs, or if margins oppose the preferences.

    One pair of each sign, with a margin of the root mean square, is added: else pairs that are all in the right order would ask for s = ∞.
    The loss is convex in s, so its derivative is bisected.
    """
    rms = float(np.sqrt((weight_P * margin_P**2).sum() / weight_P.sum())) if len(margin_P) else 0.0
    if rms == 0.0:
        return 0.0
    unit = np.concatenate([margin_P / rms, [1.0, -1.0]])
    weight = np.concatenate([weight_P, [1.0, 1.0]])

    def slope(scale: float) -> float:
        return float(-(weight * unit * sigmoid(-scale * unit)).sum())

    low, high = 0.0, LARGEST_SCALE
    if slope(low) >= 0:
        return 0.0
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 0.5 * (low + high) / rms

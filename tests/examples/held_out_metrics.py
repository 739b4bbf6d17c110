"""Measure a policy on held-out preferences: accuracy with an interval over prompts, a paired difference, win rate, calibration.

Pairs of one prompt are not independent, so intervals resample prompts. Comparisons of two policies use the same resamples.
"""

from __future__ import annotations

import numpy as np

from dora_core.evaluation.metrics import (
    Interval,
    cluster_bootstrap,
    correct,
    estimate_text,
    paired_difference,
    preference_pairs,
    reward_calibration,
)
from dora_core.evaluation.winrate import outcomes, sign_test, win_rate, win_tie_lose

BOOTSTRAP = {"samples": 500, "confidence": 0.95, "seed": 0}
PROMPTS = 200


def main() -> tuple[Interval, Interval, Interval, float]:
    """Return accuracy, its difference to a weaker policy, win rate, and the p-value of the sign test."""
    rng = np.random.default_rng(0)
    quality = rng.normal(size=(PROMPTS, 3))  # of three responses to each prompt: the labels
    strong, weak = (quality + rng.normal(0, noise, quality.shape) for noise in (0.5, 2.0))  # implicit rewards of two policies

    pairs = preference_pairs(quality.tolist())
    prompt_P = pairs.record_P
    strong_P, weak_P = (correct(r.ravel()[pairs.winner_P] - r.ravel()[pairs.loser_P]) for r in (strong, weak))
    accuracy = cluster_bootstrap(strong_P, prompt_P, **BOOTSTRAP)
    lift = paired_difference(strong_P, weak_P, prompt_P, **BOOTSTRAP)
    reliability = reward_calibration(strong.ravel()[pairs.winner_P] - strong.ravel()[pairs.loser_P], prompt_P, **BOOTSTRAP)

    shares = win_tie_lose(rng.normal(0.4, 1.0, (PROMPTS, 2)), rng.normal(0.0, 1.0, (PROMPTS, 2)))  # a judge's scores of two samples each
    wins = outcomes(shares, np.arange(PROMPTS), **BOOTSTRAP).win_rate
    p = sign_test(win_rate(shares), np.arange(PROMPTS))
    print(f"accuracy {estimate_text(accuracy, '.3f')}, lift {estimate_text(lift, '.3f')}")
    print(f"win rate {estimate_text(wins, '.3f')}, p {p:.4f}; calibration error {estimate_text(reliability.ece, '.3f')}")
    return accuracy, lift, wins, p


if __name__ == "__main__":
    main()

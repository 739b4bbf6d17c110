"""The golden share among unlabelled responses: mixture proportion estimation with golden rows as positives.

Unlabelled rows are U = a·Q_0 + (1 − a)·Q'. From samples of Q_0 and U alone a is *not identified*: any part of Q' that looks golden may
be called golden. Identified is the largest share that the data allow, a⁺ = min U/Q_0 ≥ a, with equality only if some
responses are written by people alone (Blanchard, Lee & Scott 2010, "irreducibility"). This module estimates a⁺ and calls it so.

The factor h does not suffer: it needs w_u = Q_0/U, whose maximum is 1/a⁺ by definition, and no a. Only the reported α and the
posterior a·w_u of a row being golden are upper bounds.

Method: best bin estimation (Garg et al. 2021, arXiv 2111.00980, algorithm 1). Over thresholds c of the classifier's score, the ratio of
P_U(score ≥ c) to P_0(score ≥ c) bounds a⁺ from above; the threshold with the lowest upper confidence bound is taken. A
blunter classifier gives a higher estimate, never a systematically lower one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dora_core.strict_model import StrictModel

Floats = NDArray[np.float64]
DELTA, SLACK = 0.1, 0.01  # δ and γ of the paper
RESAMPLES, QUANTILES = 200, (0.025, 0.975)


class GoldenShare(StrictModel):
    """Estimate of a⁺ in (0, 1] with a 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def best_bin(golden: Floats, unlabelled: Floats) -> float:
    """a⁺ in (0, 1] from out-of-fold scores of golden and unlabelled rows; both non-empty, any monotone scale."""
    thresholds = np.unique(golden)
    golden_tail = 1 - np.searchsorted(np.sort(golden), thresholds) / len(golden)
    unlabelled_tail = 1 - np.searchsorted(np.sort(unlabelled), thresholds) / len(unlabelled)
    width = math.sqrt(math.log(4 / DELTA) / 2 / len(unlabelled)) + math.sqrt(math.log(4 / DELTA) / 2 / len(golden))
    best = np.argmin((unlabelled_tail + (1 + SLACK) * width) / golden_tail)
    # No unlabelled row in the best bin: at most about one in the sample.
    return float(min(1.0, max(unlabelled_tail[best] / golden_tail[best], 1 / len(unlabelled))))


def golden_share(logits: Floats, golden: NDArray[np.bool_], prompts: NDArray[np.uint64], seed: int = 0) -> GoldenShare:
    """:func:`best_bin` with an interval from :data:`RESAMPLES` bootstrap samples of prompts.

    Args:
        logits: (N,) out-of-fold logits of the unlabelled head on golden and unlabelled rows.
        golden: (N,) which rows are golden; both kinds occur.
        prompts: (N,) prompt of each row.
    """
    order = np.argsort(prompts, kind="stable")
    rows_of = np.split(order, np.flatnonzero(np.diff(prompts[order])) + 1)
    rng, values = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        rows = np.concatenate([rows_of[i] for i in rng.integers(len(rows_of), size=len(rows_of))])
        own = golden[rows]
        if own.any() and not own.all():
            values.append(best_bin(logits[rows][own], logits[rows][~own]))
    value = best_bin(logits[golden], logits[~golden])
    low, high = np.quantile(values or [value], QUANTILES)
    return GoldenShare(value=value, low=min(value, float(low)), high=max(value, float(high)))

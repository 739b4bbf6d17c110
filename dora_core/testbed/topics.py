"""Topics of the known mixture's sources: who answers which prompts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ROUNDS = 500  # of iterative proportional fitting; it converges linearly, here in a few dozen


def shares_by_topic(shares_S: Floats, topics: int, strength: float) -> Floats:
    """P(source | topic), shape (S, T), whose mean over topics is exactly the mixture's shares.

    Every source prefers a part of the circle of topics: its affinity to topic t is strength·cos 2π(t/T − s/S). Iterative proportional
    fitting (Sinkhorn) turns exp(affinity) into the joint distribution with these affinities (up to a term of the source and
    one of the topic), the mixture's shares and equally frequent topics.

    Args:
        shares_S: shares of the sources, golden first, summing to 1.
        strength: 0 = the same shares for every topic.
    """
    sources = len(shares_S)
    if strength == 0:
        return np.repeat(shares_S[:, None], topics, axis=1)
    angle_ST = 2 * np.pi * (np.arange(topics)[None] / topics - np.arange(sources)[:, None] / sources)
    share_ST = np.exp(strength * np.cos(angle_ST))
    for _ in range(ROUNDS):
        share_ST *= (shares_S / share_ST.mean(axis=1))[:, None]
        share_ST /= share_ST.sum(axis=0)
    return share_ST

"""Preferences of a Bradley-Terry world whose sources differ in what their labels are worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dora_core.selection.proxy import ProxyPairs

D = 6
THETA = np.array([1.5, -1.5, 1.0, 0.0, 0.0, 0.0])


def pairs_of(groups: Sequence[tuple[int, float, float]], folds: int = 4, seed: int = 0) -> ProxyPairs:
    """Pairs of each group in turn: (number of pairs, share of reversed labels, weight of a bias towards feature 4 in its labels). Every
    pair has a prompt of its own."""
    rng = np.random.default_rng(seed)
    difference, group = [], []
    for number, (count, reversed_share, bias) in enumerate(groups):
        x = rng.standard_normal((count, D))
        liked = rng.random(count) < 1 / (1 + np.exp(-(x @ THETA + bias * x[:, 3])))
        liked ^= rng.random(count) < reversed_share
        difference.append(np.where(liked[:, None], x, -x))
        group += [number] * count
    prompt = rng.permutation(len(group))
    return ProxyPairs(np.concatenate(difference), np.array(group), prompt, prompt % folds, np.ones(len(group)))

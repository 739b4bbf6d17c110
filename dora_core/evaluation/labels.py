"""Metrics of responses with a label, desirable or undesirable, with bootstrap intervals over prompts.

A labelled response has no other response to be compared with, so its score is read by itself (:func:`label_accuracy`) or against the
labelled responses of all prompts (:func:`label_auc`). Responses of one prompt with different labels make pairs (:func:`label_pairs`).

Shape legend: N labelled responses, K prompts, S bootstrap resamples, U distinct scores.
"""

from __future__ import annotations

import math

import numpy as np

from dora_core.evaluation.metrics import Array, Interval, Pairs, correct, draw_counts, percentiles

PAIRED_AT_MOST = 32
"""Responses of each label of a prompt that make pairs: a prompt that occurs very often would make as many pairs as their product."""
RESAMPLES_AT_ONCE = 16


def label_accuracy(score_N: Array, desirable_N: Array) -> Array:
    """Return 1 where the score's sign agrees with the label, ½ where the score is 0, else 0.

    With the implicit reward log π − log π_start as score: whether the policy made a desirable response more likely than the start did,
    or an undesirable one less likely.
    """
    return correct(np.where(desirable_N, score_N, -score_N))


def label_auc(score_N: Array, desirable_N: Array, prompt_N: Array, samples: int, confidence: float, seed: int) -> Interval | None:
    """Area under the ROC curve: the probability that a desirable response has a larger score than an undesirable one, ½ for a tie.

    Responses of all prompts are compared with each other and weigh the same; the interval resamples prompts. None unless both labels
    occur. Chance is ½, which is also the value of a policy whose implicit reward is constant (the start).
    """
    if desirable_N.all() or not desirable_N.any():
        return None
    prompts_K, prompt_N = np.unique(prompt_N, return_inverse=True)
    order = np.argsort(score_N, kind="stable")
    prompt_N, desirable_N = prompt_N[order], desirable_N[order]
    _, first_U = np.unique(score_N[order], return_index=True)

    def area(weight_SN: Array) -> Array:
        desirable_SU = np.add.reduceat(weight_SN * desirable_N, first_U, axis=1)
        undesirable_SU = np.add.reduceat(weight_SN * ~desirable_N, first_U, axis=1)
        below_SU = np.cumsum(undesirable_SU, axis=1) - undesirable_SU / 2
        with np.errstate(invalid="ignore"):  # a resample without one of the labels is left out
            shares: Array = (desirable_SU * below_SU).sum(axis=1) / (desirable_SU.sum(axis=1) * undesirable_SU.sum(axis=1))
        return shares

    counts_SK = draw_counts(len(prompts_K), samples, seed)
    parts = [area(counts_SK[i : i + RESAMPLES_AT_ONCE][:, prompt_N]) for i in range(0, samples, RESAMPLES_AT_ONCE)]
    value, areas_S = float(area(np.ones((1, len(prompt_N))))[0]), np.concatenate(parts)
    low, high = (value, value) if np.isnan(areas_S).all() else percentiles(areas_S, confidence)
    return Interval(value=value, low=float(low), high=float(high), n=len(prompts_K))


def label_pairs(rewards: list[list[float | None]], labelled: list[bool], prompt_R: Array) -> Pairs:
    """Return the pairs of a desirable and an undesirable response of the same prompt, each response from a record of its own.

    Args:
        rewards: of all records; those of labelled records have one element, 1 or 0.
        labelled: whether a record is a labelled response.
        prompt_R: hash of each record's prompt.

    Of a prompt with more than :data:`PAIRED_AT_MOST` responses of a label, evenly spaced ones are taken. ``record_P`` is the record of
    the desirable response.
    """
    start_R = np.cumsum([0, *map(len, rewards)])[:-1]
    by_prompt: dict[int, tuple[list[int], list[int]]] = {}
    for record in np.flatnonzero(labelled).tolist():
        by_prompt.setdefault(int(prompt_R[record]), ([], []))[int(not rewards[record][0])].append(record)
    pairs = [
        (winner, loser) for desirable, undesirable in by_prompt.values() for winner in _spaced(desirable) for loser in _spaced(undesirable)
    ]
    winner_P, loser_P = np.array(pairs, dtype=int).reshape(-1, 2).T
    return Pairs(winner_P, start_R[winner_P], start_R[loser_P], np.ones(len(pairs)))


def joined_pairs(first: Pairs, second: Pairs) -> Pairs:
    """Concatenate the pairs of the same records."""
    return Pairs(*(np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("record_P", "winner_P", "loser_P", "gap_P")))


def _spaced(records: list[int]) -> list[int]:
    if len(records) <= PAIRED_AT_MOST:
        return records
    return [records[math.floor(k * len(records) / PAIRED_AT_MOST)] for k in range(PAIRED_AT_MOST)]

"""Held-out metrics against arithmetic by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dora_core.evaluation.metrics import (
    Interval,
    cluster_bootstrap,
    draw_counts,
    draws,
    estimate_text,
    padded,
    pair_accuracy,
    preference_pairs,
    reward_calibration,
    spearman_within,
)

BOOT = {"samples": 400, "confidence": 0.95, "seed": 0}


def test_pairs_of_ties_and_unmeasured_rewards_are_none() -> None:
    pairs = preference_pairs([[2.0, None, 1.0], [1.0, 1.0], [0.0, 3.0]])
    assert pairs.record_P.tolist() == [0, 2]
    assert (pairs.winner_P.tolist(), pairs.loser_P.tolist(), pairs.gap_P.tolist()) == ([0, 6], [2, 5], [1.0, 3.0])


def test_prompts_weigh_the_same_however_many_values_they_have() -> None:
    found = cluster_bootstrap(np.array([1.0, 1.0, 1.0, 0.0]), np.array([7, 7, 7, 9]), **BOOT)
    assert (found.value, found.n) == (0.5, 2)
    assert (found.low, found.high) == (0.0, 1.0)


def test_counts_are_those_of_the_draws() -> None:
    counts = draw_counts(5, 20, seed=3)
    assert counts.sum(axis=1).tolist() == [5.0] * 20
    assert all((counts[s] == np.bincount(row, minlength=5)).all() for s, row in enumerate(draws(5, 20, seed=3)))


def test_an_estimate_as_text() -> None:
    nan = math.nan
    texts = [estimate_text(Interval(value=v, low=low, high=0.75, n=3), ".2f") for v, low in ((0.5, 0.25), (0.5, nan), (nan, nan))]
    assert [estimate_text(None, ".3f"), *texts] == ["–", "0.50 [0.25, 0.75]", "0.50", "–"]


# ---------------------------------------------------------------------------------------------------------- calibration


def test_calibration_error_by_hand() -> None:
    """σ(log 4) = .8: four of five right in that bin is calibrated; σ(log 9) = .9 with one of two right is off by .4."""
    margins = np.log(np.array([4.0, 4, 4, 4, 1 / 4, 9, 1 / 9]))
    found = reward_calibration(margins, np.arange(7), **BOOT)
    assert found.ece.value == pytest.approx(2 / 7 * 0.4)
    assert found.confidence == pytest.approx([0.8, 0.9])
    assert found.accuracy == pytest.approx([0.8, 0.5])
    assert found.count == [5, 2]
    assert found.low[1] == 0.0 and found.high[1] == 1.0


def test_both_orientations_of_the_pairs_give_the_same_error() -> None:
    """The textbook computation on (σ(m), 1) and (σ(−m), 0) over bins of [0, 1]."""
    margins = np.random.default_rng(0).normal(0.4, 1.5, 300)
    p = 1 / (1 + np.exp(-np.concatenate([margins, -margins])))
    label = np.repeat([1.0, 0.0], 300)
    bins = np.minimum((p * 20).astype(int), 19)
    expected = sum(abs(p[bins == b].sum() - label[bins == b].sum()) for b in range(20)) / 600
    assert reward_calibration(margins, np.arange(300), **BOOT).ece.value == pytest.approx(expected)


def test_a_calibrated_reward_is_near_zero_and_an_overconfident_one_is_not() -> None:
    """Margins that are log-odds: the better response is named by a coin of that bias."""
    rng = np.random.default_rng(1)
    logit = np.abs(rng.normal(0, 1.5, 4000))
    margins = np.where(rng.random(4000) < 1 / (1 + np.exp(-logit)), logit, -logit)
    good = reward_calibration(margins, np.arange(4000), **BOOT)
    assert good.ece.value < 0.03
    assert all(low - 0.03 <= c <= high + 0.03 for c, low, high in zip(good.confidence, good.low, good.high, strict=True))
    bad = reward_calibration(10 * margins, np.arange(4000), **BOOT)
    assert bad.ece.low > 0.15


def test_calibration_weighs_prompts_and_not_pairs() -> None:
    """99 wrong pairs of one prompt and one right pair of another: half and half."""
    margins = np.array([-50.0] * 99 + [50.0])
    found = reward_calibration(margins, np.array([0] * 99 + [1]), **BOOT)
    assert found.accuracy == pytest.approx([0.5]) and found.ece.value == pytest.approx(0.5) and found.count == [100]


# ---------------------------------------------------------------------------------------------- among a prompt's responses


def test_pair_accuracy_by_hand() -> None:
    """Rewards 2 > 1 = 1: two pairs; the scores order one right and tie on the other. A prompt of equal rewards has no pair."""
    scores = np.array([[3.0, 1.0, 3.0], [1.0, 2.0, np.nan]])
    rewards = np.array([[2.0, 1.0, 1.0], [0.0, 0.0, np.nan]])
    got = pair_accuracy(scores, rewards)
    assert got[0] == 0.75 and math.isnan(got[1])


def test_spearman_within_by_hand() -> None:
    """ρ = 1 − 6Σd²/(n(n² − 1)) without ties: ranks (1, 2, 3, 4) and (2, 1, 4, 3) have Σd² = 4, ρ = 1 − 24/60."""
    x = padded(np.array([10.0, 20, 30, 40, 1, 2, 3]), np.array([0, 0, 0, 0, 1, 1, 1]))
    y = padded(np.array([0.2, 0.1, 0.4, 0.3, 5, 5, 5]), np.array([0, 0, 0, 0, 1, 1, 1]))
    got = spearman_within(x, y)
    assert got[0] == pytest.approx(0.6) and math.isnan(got[1])
    # ties share their mean rank: (1, 2.5, 2.5) against (1, 2, 3) is the Pearson correlation of these numbers
    tied = spearman_within(np.array([[0.0, 1.0, 1.0]]), np.array([[0.0, 1.0, 2.0]]))
    assert tied[0] == pytest.approx(np.corrcoef([1, 2.5, 2.5], [1, 2, 3])[0, 1])

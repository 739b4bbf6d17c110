"""The proxy against arithmetic by hand, scikit-learn, and fits that leave rows out by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dora_core.selection.proxy import (
    GOLDEN,
    RIDGES,
    CrossFit,
    ProxyPairs,
    choose_ridge,
    cross_fitted_golden_loss,
    fit,
    preference_loss,
    within_one_error,
)

D = 6


def drawn(pairs: int, golden: float = 0.5, folds: int = 3, noise: float = 0.0, seed: int = 0) -> ProxyPairs:
    """Pairs of a Bradley-Terry world with θ = (1, −1, 0, …); labels of group 1 are reversed with probability ``noise``."""
    rng = np.random.default_rng(seed)
    difference = rng.standard_normal((pairs, D))
    theta = np.array([1.0, -1.0, *np.zeros(D - 2)])
    group = (rng.random(pairs) >= golden).astype(int)
    right = rng.random(pairs) < 1 / (1 + np.exp(-difference @ theta))
    right ^= (group == 1) & (rng.random(pairs) < noise)
    prompt = rng.integers(0, pairs // 2, pairs)
    return ProxyPairs(np.where(right[:, None], difference, -difference), group, prompt, prompt % folds, np.ones(pairs))


def test_the_optimum_of_one_feature_by_hand() -> None:
    # d/dθ [w·log(1 + e^−θ) + λθ²/2] = −w·σ(−θ) + λθ = 0. At θ = log 3, σ(−θ) = 1/4, so w = 4·λ·log 3.
    head = fit(np.array([[1.0]]), np.array([4 * 0.5 * math.log(3)]), ridge=0.5)
    assert head.theta_D == pytest.approx([math.log(3)], abs=1e-4)
    # Label q: w·(σ(θ) − q) + λθ = 0. At θ = −log 3, σ(θ) = 1/4; with q = 0 and the same w the optimum is the mirror image,
    # with q = 1/4 + λθ/w and θ = −log 3, w = 1, λ = 0.1: q = 0.25 − 0.1·log 3.
    head = fit(np.array([[1.0]]), np.ones(1), np.array([0.25 - 0.1 * math.log(3)]), ridge=0.1)
    assert head.theta_D == pytest.approx([-math.log(3)], abs=1e-4)


def test_the_loss_by_hand() -> None:
    # m = log 3: −log(3/4) and −log(1/4); at label ¾ their mixture.
    loss = preference_loss(np.array([math.log(3), -math.log(3)]))
    assert loss == pytest.approx([math.log(4 / 3), math.log(4)])
    assert preference_loss(np.array([math.log(3)]), np.array([0.75])) == pytest.approx([0.75 * math.log(4 / 3) + 0.25 * math.log(4)])
    assert np.isfinite(preference_loss(np.array([-800.0, 800.0]))).all()


def test_a_fit_equals_scikit_learns() -> None:
    pairs = drawn(400)
    rng = np.random.default_rng(1)
    weight, label = rng.random(400) * (rng.random(400) < 0.8), rng.random(400)
    head = fit(pairs.difference_PD, weight, label, ridge=2.0)
    # A soft label is a row of each class; a model without intercept.
    rows = np.concatenate([pairs.difference_PD, pairs.difference_PD])
    other = LogisticRegression(C=1 / 2.0, fit_intercept=False, tol=1e-10, max_iter=1000)
    other.fit(rows, np.repeat([1, 0], 400), sample_weight=np.concatenate([weight * label, weight * (1 - label)]))
    assert head.theta_D == pytest.approx(other.coef_[0], abs=2e-5)


def test_start_and_curvature_do_not_move_the_optimum() -> None:
    pairs = drawn(300)
    weight = np.ones(300)
    plain = fit(pairs.difference_PD, weight, ridge=1.0)
    assert fit(pairs.difference_PD, weight, ridge=1.0, start=plain).theta_D == pytest.approx(plain.theta_D, abs=1e-5)
    for poor in (1e-2, 1.0, 1e4):  # far too steep, far too flat
        assert fit(pairs.difference_PD, weight, ridge=1.0, curvature_DD=poor * np.eye(D)).theta_D == pytest.approx(plain.theta_D, abs=5e-4)


def test_separable_pairs_stay_finite() -> None:
    difference = np.abs(np.random.default_rng(0).standard_normal((50, D)))
    head = fit(difference, np.ones(50), ridge=1e-3)
    assert np.isfinite(head.theta_D).all() and (head.margins(difference) > 0).all()


def test_every_golden_pair_is_scored_by_a_head_without_its_prompt() -> None:
    pairs = drawn(120)
    weight = np.where(pairs.group_P == GOLDEN, 1.0, 0.3)
    losses = cross_fitted_golden_loss(pairs, weight, ridge=1.0)
    expected: dict[int, list[float]] = {}
    for i in np.flatnonzero(pairs.golden_P):
        kept = pairs.fold_P != pairs.prompt_P[i] % 3
        head = fit(pairs.difference_PD[kept], weight[kept], ridge=1.0)
        expected.setdefault(int(pairs.prompt_P[i]), []).append(float(preference_loss(head.margins(pairs.difference_PD[[i]]))[0]))
    assert losses == pytest.approx([np.mean(expected[prompt]) for prompt in sorted(expected)], abs=1e-4)


def test_weights_and_labels_by_held_out_fold() -> None:
    pairs = drawn(150)
    weight_KP, label_KP = np.ones((3, 150)), np.ones((3, 150))
    weight_KP[1] *= 0.5
    label_KP[2] = 0.8
    heads = CrossFit(pairs, 1.0, label_KP).fit(weight_KP)
    for fold, (weight, label) in enumerate([(1.0, 1.0), (0.5, 1.0), (1.0, 0.8)]):
        kept = pairs.fold_P != fold
        alone = fit(pairs.difference_PD[kept], np.full(kept.sum(), weight), np.full(kept.sum(), label), ridge=1.0)
        assert heads[fold].theta_D == pytest.approx(alone.theta_D, abs=1e-4)


def test_heads_of_changing_weights_equal_fresh_ones() -> None:
    pairs = drawn(300, noise=0.4)
    fitted = CrossFit(pairs, 1.0)
    for kappa in (1.0, 0.0, 0.03, 1.0, 0.3):
        weight = np.where(pairs.golden_P, 1.0, kappa)
        kept = fitted.golden_losses(fitted.fit(weight))
        assert kept == pytest.approx(cross_fitted_golden_loss(pairs, weight, ridge=1.0), abs=1e-4)


@pytest.mark.parametrize("pairs", [40, 1000])
def test_the_ridge_has_the_lowest_loss(pairs: int) -> None:
    world = drawn(pairs, golden=1.0)
    losses = {ridge: cross_fitted_golden_loss(world, np.ones(pairs), ridge=ridge).mean() for ridge in RIDGES}
    assert choose_ridge(world, np.ones(pairs)) == min(losses, key=losses.__getitem__)


def test_one_standard_error_by_hand() -> None:
    # Differences to the lowest (third) candidate: (.2, .2) has error 0, so its mean .2 exceeds it; (.3, −.1): mean .1, sd .2828,
    # error .2828/√2 = .2, which covers it.
    low = np.array([1.0, 1.0])
    assert within_one_error([low + 0.2, low + np.array([0.3, -0.1]), low]) == 1
    assert within_one_error([low + 0.2, low]) == 1


def test_what_is_refused() -> None:
    pairs = drawn(10)
    with pytest.raises(ValueError, match="ridge must be > 0"):
        fit(pairs.difference_PD, np.ones(10), ridge=0.0)
    with pytest.raises(ValueError, match=r"one row per pair.*\[9, 10\]"):
        ProxyPairs(pairs.difference_PD, pairs.group_P, pairs.prompt_P, pairs.fold_P, np.ones(9))
    broken = pairs.difference_PD.copy()
    broken[3] = np.nan
    with pytest.raises(ValueError, match="1 pairs have features that are not finite"):
        ProxyPairs(broken, pairs.group_P, pairs.prompt_P, pairs.fold_P, pairs.weight_P)

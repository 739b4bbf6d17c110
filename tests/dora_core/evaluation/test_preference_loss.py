"""The loss at the best scale: by hand, against a grid in float64, and its invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dora_core.evaluation.preference_loss import calibrated_losses, fit_scale


def test_two_margins_by_hand() -> None:
    # Margins 1, 1, 1, −1 have rms 1; with one pair of each sign added, 4 of 6 pairs are right at |m| = 1. The optimum of
    # 4·log(1 + e^−s) + 2·log(1 + e^s) is σ(s) = 4/6, s = log 2.
    assert fit_scale(np.array([1.0, 1.0, 1.0, -1.0]), np.ones(4)) == pytest.approx(math.log(2))


def test_against_a_grid() -> None:
    random = np.random.default_rng(0)
    margin, weight = random.normal(0.4, 1.0, 50), random.uniform(0.2, 1.0, 50)
    rms = math.sqrt((weight * margin**2).sum() / weight.sum())
    m, w = np.concatenate([margin, [rms, -rms]]), np.concatenate([weight, [1.0, 1.0]])
    grid = np.linspace(0, 5, 50_001)
    losses = (w[:, None] * np.logaddexp(0.0, -np.outer(m, grid))).sum(axis=0)
    assert fit_scale(margin, weight) == pytest.approx(grid[losses.argmin()], abs=2e-4)


def test_a_policy_that_opposes_the_preferences_or_knows_nothing_has_the_loss_of_chance() -> None:
    prompts = np.arange(10)
    for margin in (np.zeros(10), -np.ones(10)):
        assert calibrated_losses(margin, prompts) == pytest.approx(np.full(10, math.log(2)))


def test_the_scale_of_the_margins_does_not_matter_and_the_own_half_is_not_fitted() -> None:
    random = np.random.default_rng(1)
    margin, prompts = random.normal(0.3, 1.0, 40), np.repeat(np.arange(20), 2)
    assert calibrated_losses(1000 * margin, prompts) == pytest.approx(calibrated_losses(margin, prompts))
    other = margin.copy()
    other[prompts == 0] += 3  # prompt 0 is in the first half: its own loss is at the scale of the second
    scale = fit_scale(margin[prompts % 2 == 1], np.full(20, 0.5))
    assert calibrated_losses(other, prompts)[prompts == 0] == pytest.approx(np.logaddexp(0.0, -scale * other[prompts == 0]))


def test_margins_all_in_the_right_order_have_a_finite_scale() -> None:
    assert 0 < fit_scale(np.ones(20), np.ones(20)) < 10

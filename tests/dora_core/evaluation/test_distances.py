"""Distances by hand, and how often chance alone exceeds its part."""

from __future__ import annotations

import numpy as np
import pytest

from dora_core.evaluation.distances import ks_chance, ks_distance, total_variation, total_variation_chance


def test_ks_by_hand():
    assert ks_distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    assert ks_distance([1, 1, 2], [1, 2, 2]) == pytest.approx(1 / 3)
    assert ks_distance([1, 2], [5, 6]) == 1.0 and ks_distance([7, 7], [7]) == 0.0


def test_ks_chance_is_the_tabulated_critical_value():
    assert ks_chance(100, 100) == pytest.approx(1.628 * np.sqrt(2 / 100), rel=1e-3)  # 1.628 at 1 %


def test_total_variation_by_hand():
    assert total_variation(np.array([0.5, 0.5, 0.0]), np.array([0.2, 0.5, 0.3])) == pytest.approx(0.3)


@pytest.mark.parametrize(("n", "m"), [(60, 60), (1000, 80)])
def test_chance_is_exceeded_in_at_most_one_case_of_a_hundred(n, m):
    rng, shares, trials = np.random.default_rng(0), np.array([0.3, 0.4, 0.25, 0.05]), 2000
    distances = [ks_distance(rng.normal(size=n), rng.normal(size=m)) for _ in range(trials)]
    assert np.mean(np.array(distances) > ks_chance(n, m)) < 0.015
    before, now = rng.multinomial(n, shares, trials) / n, rng.multinomial(m, shares, trials) / m
    beyond = [total_variation(p, q) > total_variation_chance(p, q, n, m) for p, q in zip(before, now, strict=True)]
    assert np.mean(beyond) < 0.01


def test_chance_vanishes_with_the_sample():
    shares = np.array([0.5, 0.5])
    assert total_variation_chance(shares, shares, 10**6, 10**6) < 0.005 and ks_chance(10**6, 10**6) < 0.005

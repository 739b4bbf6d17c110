"""Deviation of a source's labels from people's, against arithmetic by hand and the exact densities of a Bradley-Terry world."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dora_core.selection.label_trust import reward_model_trust
from dora_core.selection.source_bias import Deviation, deviation
from tests.dora_core.selection.worlds import THETA, pairs_of


def test_the_deviation_by_hand() -> None:
    # Source: three labels, l = .9, .9, .4, people's p = .6 each. g = +, +, −: (2·.4 − .4)/3 = .4/3.
    # Golden: two labels of people with l = .9, .3 and p = .6, .4: g = +, −: (.4 − .6)/2 = −.1. D = .4/3 + .1; I = .4.
    own, people = np.array([0.9, 0.9, 0.4, 0.9, 0.3]), np.array([[0.6, 0.6, 0.6, 0.6, 0.4]])
    source = np.arange(5) < 3
    ones = np.ones((1, 3)), np.ones((1, 2))
    found = deviation(own, people, np.zeros(1), source, ~source, *ones)
    assert found.systematic_B[0] == pytest.approx(0.4 / 3 + 0.1) == found.unexplained_B[0] and found.independent_B[0] == pytest.approx(0.4)
    share = found.systematic_B[0] / 0.4
    assert found.agreement_B[0] == pytest.approx(1 - found.systematic_B[0] - share**2 * (0.4 - found.systematic_B[0]))
    assert found.bounds_B[0][0] == pytest.approx(0.6) and found.bounds_B[1][0] == pytest.approx(1 - found.systematic_B[0])
    # With η = ¼: r = .75p + .25(1 − p) = .55 and .45. Source: (2·.45 − .45)/3 = .15; golden: ½·(−.1). D stays.
    half = deviation(own, people, np.array([0.25]), source, ~source, *ones)
    assert half.unexplained_B[0] == pytest.approx(0.15 + 0.05) and half.systematic_B[0] == found.systematic_B[0]
    # Weights: without its last label the source has .4 on every one.
    two = deviation(own, people, np.zeros(1), source, ~source, np.array([[1.0, 1.0, 0.0]]), ones[1])
    assert two.systematic_B[0] == pytest.approx(0.5)


def test_it_is_biased_above_three_standard_errors() -> None:
    def of(value: float) -> Deviation:
        return Deviation(np.array([value, -0.1, 0.1]), np.zeros(3), np.full(3, 0.4))  # standard deviation .1

    assert of(0.31).biased and not of(0.29).biased and not of(-0.5).biased
    assert of(0.5).agreement_B[0] == 1.0, "nothing systematic"


@pytest.mark.parametrize("bias", [1.0, 4.0])
def test_bounds_are_those_of_the_exact_densities(bias: float) -> None:
    trust = reward_model_trust(pairs_of([(3000, 0.0, 0.0), (4000, 0.0, bias)]), 3.0, samples=20)
    rng = np.random.default_rng(9)
    m, own = rng.normal(0, math.sqrt(THETA @ THETA), 200_000), bias * rng.standard_normal(200_000)
    p, judge = 1 / (1 + np.exp(-m)), 1 / (1 + np.exp(-(m + own)))
    found = trust.deviations[1]
    assert found.biased
    assert found.systematic_B[0] == pytest.approx(np.abs(judge - p).mean(), abs=0.02)
    assert found.independent_B[0] == pytest.approx((judge * (1 - p) + (1 - judge) * p).mean(), abs=0.02)


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.5, 1.0])
def test_reversals_are_no_bias(noise: float) -> None:
    pairs = pairs_of([(500, 0.0, 0.0), (2000, noise, 0.0)], seed=2)
    found = reward_model_trust(pairs, 3.0, samples=50).deviations[1]
    assert not found.biased and abs(found.unexplained_B[0]) < 0.06
    assert found.systematic_B[0] == pytest.approx(noise * np.abs(1 - 2 * _exact(pairs.difference_PD)).mean(), abs=0.06)  # r − p = η(1 − 2p)


def test_an_error_of_the_golden_head_is_no_bias_of_the_source() -> None:
    """60 golden pairs: the head is far off, and the source's labels are people's."""
    plain, robust = [], []
    for seed in range(6):
        pairs = pairs_of([(60, 0.0, 0.0), (3000, 0.0, 0.0)], seed=seed)
        trust = reward_model_trust(pairs, 3.0, samples=50)
        own = pairs.group_P == 1
        robust.append(trust.deviations[1].unexplained_B[0])
        plain.append(abs(_exact(pairs.difference_PD[own]) - trust.people_P[own]).mean())
    assert np.mean(plain) > 0.08 > abs(np.mean(robust))


def _exact(difference_PD: np.ndarray) -> np.ndarray:
    exact: np.ndarray = 1 / (1 + np.exp(-difference_PD @ THETA))
    return exact

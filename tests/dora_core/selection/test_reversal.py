"""Reversal at random against arithmetic by hand and a direct minimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from dora_core.selection.reversal import label_probability, noise_of_agreement, noise_rate, noise_rates, temperature


def test_the_noise_rate_by_hand() -> None:
    # 7 labels with p = .9 and 3 with p = .1 (the other response stated): the share .7 = (1 − η)·.9 + η·.1 gives η = .25.
    p = np.array([0.9] * 7 + [0.1] * 3)
    assert noise_rate(p, np.ones(10)) == pytest.approx(0.25)
    assert noise_rate(p, np.where(p > 0.5, 1.0, 7 / 3)) == pytest.approx(0.5)  # weights make both kinds alike
    assert noise_rate(1 - p, np.ones(10)) == pytest.approx(0.75) and noise_rate(1 - p, np.ones(10), highest=0.5) == pytest.approx(0.5)
    assert noise_rate(np.full(5, 0.9), np.ones(5)) == pytest.approx(0.0, abs=1e-9)  # all agree


def test_noise_rates_maximise_the_likelihood() -> None:
    rng = np.random.default_rng(0)
    p, weight = rng.uniform(0.05, 0.95, (3, 80)), rng.random((3, 80))
    p = np.where(rng.random(p.shape) < 0.2 + 0.6 * p, p, 1 - p)  # more often the likelier side
    for row, found in enumerate(noise_rates(p, weight)):
        direct = minimize_scalar(
            lambda eta, row=row: -(weight[row] @ np.log((1 - eta) * p[row] + eta * (1 - p[row]))), bounds=(0, 1), method="bounded"
        )
        assert found == pytest.approx(direct.x, abs=1e-5)


def test_the_posterior_by_hand() -> None:
    # p = .9, η = .25: .75·.9/(.75·.9 + .25·.1) = .675/.7. p = .1: .075/(.075 + .225) = ¼. No noise: 1. Pure noise: p itself.
    q = label_probability(np.array([0.9, 0.1, 0.3, 0.3]), np.array([0.25, 0.25, 0.0, 0.5]))
    assert q == pytest.approx([0.675 / 0.7, 0.25, 1.0, 0.3])
    # At the maximum of the likelihood the mean posterior is 1 − η: the fixed point of expectation maximisation.
    p = np.array([0.9] * 7 + [0.1] * 3)
    assert label_probability(p, 0.25).mean() == pytest.approx(0.75)


def test_the_temperature_by_hand() -> None:
    # Margins ±2, three of four right: σ(t·2) = ¾ at t = log 3/2.
    assert temperature(np.array([2.0, 2.0, 2.0, -2.0]), np.ones(4)) == pytest.approx(math.log(3) / 2)


def test_the_noise_of_an_agreement_by_hand() -> None:
    # p = .63 for every label: q = (1 − η)·.63/((1 − η)·.63 + η·.37). At η = ½ it is p itself; 1 and 0 at the ends.
    p, weight = np.full(4, 0.63), np.ones(4)
    assert noise_of_agreement(p, weight, 0.63) == pytest.approx(0.5)
    assert noise_of_agreement(p, weight, 1.0) == pytest.approx(0, abs=1e-9) and noise_of_agreement(p, weight, 0.0) == pytest.approx(1)
    # The fixed point above: 7 labels with p = .9, 3 with .1, agreement .75.
    p = np.array([0.9] * 7 + [0.1] * 3)
    assert noise_of_agreement(p, np.ones(10), 0.75) == pytest.approx(0.25)
    # A weight of 0 is no label.
    assert noise_of_agreement(np.append(p, 0.2), np.append(np.ones(10), 0.0), 0.75) == pytest.approx(0.25)

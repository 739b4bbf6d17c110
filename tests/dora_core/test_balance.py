"""Balance against arithmetic by hand, closed forms and moments that must match."""

from __future__ import annotations

import numpy as np
import pytest

from dora_core.balance import RIDGES, Moments, entropy_balance, standardised_differences


def test_differences_by_hand():
    """Mixture 0, 2, 4 (mean 2, var 8/3), golden 1, 3 with weights 1 and 3 (mean 2.5, var .75): scale √((8/3 + .75)/2)."""
    mixture, golden = np.array([[0.0], [2.0], [4.0]]), np.array([[1.0], [3.0]])
    moments = Moments.of(mixture, golden, np.array([1.0, 3.0]))
    scale = np.sqrt((8 / 3 + 0.75) / 2)
    assert moments.golden_F[0] == 2.5 and moments.scale_F[0] == pytest.approx(scale)
    assert standardised_differences(mixture, np.ones(3), moments)[0] == pytest.approx(-0.5 / scale)
    assert standardised_differences(mixture, np.array([0.0, 3.0, 1.0]), moments)[0] == pytest.approx(0.0)


def test_a_constant_statistic_differs_by_nothing_and_gets_no_weight():
    mixture, golden = np.column_stack([np.full(40, 3.0), np.arange(40) % 2]), np.column_stack([np.full(9, 3.0), np.arange(9) % 3 == 0])
    moments = Moments.of(mixture, golden, np.ones(9))
    tilt = entropy_balance(np.ones(40), mixture, moments, 0.1)
    assert standardised_differences(mixture, np.ones(40), moments)[0] == 0.0 and tilt.theta_F[0] == 0.0


def test_a_binary_statistic_has_the_closed_form():
    """h = 2 where f = 1 (a quarter of the rows), else 1: weighted share 2/5, odds 2/3. Golden share 3/4, odds 3. exp(θ/scale) = 4.5."""
    f = np.array([[1.0], [0.0], [0.0], [0.0]] * 500)
    h, golden = np.where(f[:, 0] == 1, 2.0, 1.0), np.array([[1.0], [1.0], [1.0], [0.0]])
    moments = Moments.of(f, golden, np.ones(4))
    tilt = entropy_balance(h, f, moments, 0.1)
    assert tilt.ridge == RIDGES[0]
    assert tilt.theta_F[0] / moments.scale_F[0] == pytest.approx(np.log(4.5), rel=1e-3)  # the ridge takes a little
    balanced = tilt(h, f)
    assert np.average(f[:, 0], weights=balanced) == pytest.approx(0.75, abs=1e-4)
    # What a ridge leaves is −δ·θ, exactly.
    assert standardised_differences(f, balanced, moments) == pytest.approx(-RIDGES[0] * tilt.theta_F, rel=1e-5)


def test_means_match_and_the_tilt_is_the_nearest_of_all_factors_that_match():
    """Against Newton's own definition: any other factors with these means are further from h in KL divergence."""
    rng = np.random.default_rng(0)
    f, h = rng.normal(size=(3000, 4)), rng.lognormal(size=3000)
    golden = rng.normal(0.3, 1.0, size=(2000, 4))
    moments = Moments.of(f, golden, np.ones(2000))
    tilt = entropy_balance(h, f, moments, 0.05)
    balanced = tilt(h, f)
    assert np.abs(standardised_differences(f, balanced, moments)).max() < 1e-3
    base, q = h / h.sum(), balanced / balanced.sum()
    z = np.column_stack([np.ones(3000), f])
    for seed in range(5):  # moves along the null space of the constraints
        move = np.random.default_rng(seed).normal(size=3000) * q
        move -= q[:, None] * z @ np.linalg.solve((z * q[:, None]).T @ z, z.T @ move)
        other = q + 0.1 * move / np.abs(move / q).max()
        assert (other > 0).all() and abs(other.sum() - 1) < 1e-9
        assert (other * np.log(other / base)).sum() > (q * np.log(q / base)).sum()


def test_the_effective_sample_size_is_guarded():
    """Golden text is three standard deviations away: full balance would leave a handful of rows."""
    rng = np.random.default_rng(1)
    f, golden = rng.normal(size=(2000, 1)), rng.normal(3.0, 1.0, size=(500, 1))
    moments, sizes = Moments.of(f, golden, np.ones(500)), []
    for floor in (0.01, 0.3, 0.8):
        tilt = entropy_balance(np.ones(2000), f, moments, floor)
        h = tilt(np.ones(2000), f)
        sizes.append(h.sum() ** 2 / (2000 * (h**2).sum()))
        assert sizes[-1] >= floor
    assert sizes[0] < sizes[1]
    assert entropy_balance(np.ones(2000), f, moments, 1.1).ridge is None, "not even the strongest ridge: h stays"

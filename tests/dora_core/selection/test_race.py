from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dora_core.selection.proxy import ProxyPairs, fit, preference_loss
from dora_core.selection.race import BASELINES, Entrant, Race, RaceData, entrants, fit_objective
from dora_core.testbed.worlds import World, WorldModel

FOLDS = 5


def race_of(world: World, *, factors: bool = False) -> tuple[Race, WorldModel]:
    model = WorldModel(world)
    data = model.sample()
    rng = np.random.default_rng(0)
    pairs = ProxyPairs(
        data.difference_Nd,
        data.source_N,
        np.arange(world.records),
        rng.permutation(np.arange(world.records) % FOLDS),
        np.ones(world.records),
    )
    return Race(RaceData(pairs, np.exp(rng.normal(size=world.records)) if factors else None), ridge=1.0), model


def run_all(race: Race) -> None:
    for entrant in entrants(factors=race.data.factor_P is not None, trust=race.data.label_P is not None):
        if entrant.is_weighting:
            race.run(entrant)


def recipe_of(race: Race) -> tuple[np.ndarray, np.ndarray]:
    return race.choose().recipe(race.data.pairs.golden_P, race.data.factor_P, race.data.label_P)


def test_entrants_are_those_the_data_allows() -> None:
    assert [e.name for e in entrants(factors=False, trust=False)] == ["golden_only", "erm", "κ 0.3", "κ 0.1", "κ 0.03"]
    names = [e.name for e in entrants(factors=True, trust=True, objectives=["dora"])]
    assert len(set(names)) == len(names) == 1 + 4 * 4 + 3 * 2
    assert {"golden_only", "erm", "erm + trust", "reweight", "κ 0.1 · h + trust", "dora @ 0.7"} <= set(names)


def test_golden_loss_of_a_weighting_is_that_of_separate_fits() -> None:
    race, _ = race_of(World(records=300, golden_share=0.3), factors=True)
    pairs, entrant = race.data.pairs, Entrant(0.3, uses_factors=True)
    relative = race.data.factor_P / race.data.factor_P[pairs.golden_P].mean()
    weights = np.where(pairs.golden_P, 1.0, 0.3 * relative)
    expected = np.full(len(pairs), np.nan)
    for fold in range(FOLDS):
        held = pairs.fold_P == fold
        head = fit(pairs.difference_PD[~held], weights[~held], ridge=1.0)
        expected[held] = preference_loss(head.margins(pairs.difference_PD[held]))
    assert race.run(entrant) == pytest.approx(expected[pairs.golden_P], abs=1e-4)


def test_margins_of_other_pairs_are_those_of_the_head_of_their_fold() -> None:
    race, _ = race_of(World(records=120, golden_share=0.5))
    pairs, entrant = race.data.pairs, BASELINES[1]
    race.run(entrant)
    others, fold = np.eye(pairs.difference_PD.shape[1])[:3], np.array([4, 0, 4])
    for row, k in enumerate(fold):
        seen = pairs.fold_P != k
        head = fit(pairs.difference_PD[seen], np.ones(seen.sum()), ridge=1.0)
        assert race.margins(entrant, others, fold)[row] == pytest.approx(head.theta_D[row], abs=1e-3)


def test_posterior_of_two_entrants_by_hand() -> None:
    race, _ = race_of(World(records=100, golden_share=0.5))
    one, two = BASELINES
    # Every prompt's loss is .01 lower for the first: whatever the bootstrap weights (sum 50), the log odds are 50 · .01 = .5.
    race.losses = {one: np.full(50, 0.60), two: np.full(50, 0.61)}
    assert race.posterior()[one] == pytest.approx(1 / (1 + np.exp(-0.5)))


def test_clear_evidence_leaves_the_winner_alone() -> None:
    """A judge that reverses labels: golden records alone, and the average is practically the winner."""
    race, _ = race_of(World(records=1500, golden_share=0.4, label_bias=4.0))
    run_all(race)
    choice = race.choose()
    weight, label = recipe_of(race)
    synthetic = ~race.data.pairs.golden_P
    assert choice.robust is None and choice.decided
    assert weight[synthetic].mean() < 0.1 and np.allclose(weight[~synthetic], 1.0) and (label == 1).all()


def test_unbiased_sources_keep_their_weight() -> None:
    race, _ = race_of(World(records=3000, golden_share=0.1, features=40, text_shift=0.0))
    run_all(race)
    weight, _ = recipe_of(race)
    assert weight[~race.data.pairs.golden_P].mean() > 0.5
    assert "a synthetic record has weight" in race.choose().reason


def test_the_average_of_softened_labels_is_the_average_of_the_losses() -> None:
    """Σ_e p_e w_e [q_e ℓ(m) + (1 − q_e) ℓ(−m)] = w [q ℓ(m) + (1 − q) ℓ(−m)] for every m."""
    race, _ = race_of(World(records=400, golden_share=0.2, noise=0.3))
    label_P = np.where(race.data.pairs.golden_P, 1.0, 0.7)
    race = Race(RaceData(race.data.pairs, None, label_P), ridge=1.0)
    run_all(race)
    (weight, label), shares = recipe_of(race), race.posterior()
    for margin in (-1.5, 0.3):
        at = np.full(len(label_P), margin)
        expected = sum(share * race.data.weights(e) * preference_loss(at, label_P if e.uses_trust else 1.0) for e, share in shares.items())
        assert weight * preference_loss(at, label) == pytest.approx(expected, rel=1e-9)


def test_a_robust_objective_wins_only_by_more_than_its_error() -> None:
    race, _ = race_of(World(records=100, golden_share=0.5), factors=True)
    weighting, robust = Entrant(), Entrant(objective="dora", ess_target=0.7, uses_factors=True)
    noise = np.linspace(-1, 1, 50)  # sd .589, standard error .083
    race.losses = {Entrant(kappa=0.0): np.full(50, 0.9), weighting: np.full(50, 0.6), robust: 0.6 - 0.05 + noise}
    assert race.choose().robust is None
    race.losses[robust] = 0.6 - 0.15 + noise
    choice = race.choose()
    assert choice.shares == {robust: 1.0} and choice.robust == robust and choice.reason.startswith("dora @ 0.7: golden loss lower")


def test_erm_as_an_objective_is_the_weighted_fit() -> None:
    rng = np.random.default_rng(0)
    difference, weight, label = rng.normal(size=(200, 5)) + 0.3, np.ones(200), rng.uniform(0.6, 1.0, 200)
    head = fit_objective(difference, weight, np.ones(200), label, objective="erm", ess_target=1.0, ridge=2.0)
    assert head.theta_D == pytest.approx(fit(difference, weight, label, ridge=2.0).theta_D, abs=1e-5)


@pytest.mark.parametrize("objective", ["dora", "dora_tilted"])
def test_a_robust_fit_is_the_optimum_at_the_lambda_of_its_target(objective: str) -> None:
    import torch
    from scipy.optimize import minimize

    from dora_core.objectives.base import find_objective
    from dora_core.objectives.lambda_control import UNBOUNDED, lambda_for_ess

    rng = np.random.default_rng(0)
    difference, factor, ones = rng.normal(size=(400, 5)) + 0.3, np.exp(0.3 * rng.normal(size=400)), np.ones(400)

    def closed_form(theta: np.ndarray, lam: float) -> float:
        """Of DESIGN: λ log mean exp(hℓ/λ), or λ log(Σ h e^(ℓ/λ)/Σ h); times n, plus ridge 2."""
        losses = np.logaddexp(0.0, -(difference @ theta))
        scores, base = (
            (factor * losses / lam, np.log(400)) if objective == "dora" else (np.log(factor) + losses / lam, np.log(factor.sum()))
        )
        return 400 * lam * (np.logaddexp.reduce(scores) - base) + theta @ theta

    def unbounded(theta: np.ndarray) -> float:
        """Its limit for λ = ∞, whose differences are not lost to rounding as those of a large λ are."""
        mean = factor / 400 if objective == "dora" else factor / factor.sum()
        return 400 * (mean @ np.logaddexp(0.0, -(difference @ theta))) + theta @ theta

    def optimum(function: Callable[..., float], *arguments: float) -> np.ndarray:
        return minimize(function, np.zeros(5), args=arguments, method="BFGS", options={"gtol": 1e-5}).x

    flat = optimum(unbounded)
    losses = torch.from_numpy(np.logaddexp(0.0, -(difference @ flat)))
    lam = lambda_for_ess(find_objective(objective), losses, torch.from_numpy(factor), 0.7)
    assert lam is not None and lam < UNBOUNDED / 1e3
    head = fit_objective(difference, ones, factor, ones, objective=objective, ess_target=0.7, ridge=2.0)
    assert head.theta_D == pytest.approx(optimum(closed_form, lam), abs=2e-3)
    assert np.abs(head.theta_D - flat).max() > 0.02

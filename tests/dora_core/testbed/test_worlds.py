from __future__ import annotations

import numpy as np
import pytest

from dora_core.testbed.worlds import World, WorldModel, random_world, sigmoid, tilted_to


def test_the_same_world_twice_is_the_same_data_and_another_seed_is_not() -> None:
    world = World(records=200, sources=3)
    one, two = WorldModel(world).sample(), WorldModel(world).sample()
    assert np.array_equal(one.difference_Nd, two.difference_Nd) and np.array_equal(one.source_N, two.source_N)
    assert not np.array_equal(one.difference_Nd, WorldModel(world.evolve(seed=1)).sample().difference_Nd)


def test_counts_of_golden_and_synthetic_records() -> None:
    data = WorldModel(World(records=1000, golden_share=0.1, sources=3)).sample()
    assert np.bincount(data.source_N).tolist() == [100, 300, 300, 300]


def test_people_label_by_bradley_terry_on_the_gold_reward() -> None:
    model = WorldModel(World(records=40_000, golden_share=0.5))
    data = model.sample()
    gap = model.gold_reward(data.better_Nd) - model.gold_reward(data.worse_Nd)
    size = np.abs(gap[data.golden_N])
    # Among pairs whose rewards differ by g, people prefer the better one with probability σ(g): binned, 20,000 pairs, 3 standard errors.
    for low, high in ((0.0, 0.5), (0.5, 1.5), (1.5, 3.0)):
        inside = (size >= low) & (size < high)
        expected = sigmoid(size[inside])
        error = 3 * np.sqrt((expected * (1 - expected)).sum()) / inside.sum()
        assert (gap[data.golden_N][inside] > 0).mean() == pytest.approx(expected.mean(), abs=error)


def test_noise_reverses_its_share_of_synthetic_labels_only() -> None:
    clean, noisy = (WorldModel(World(records=20_000, noise=noise)).sample() for noise in (0.0, 0.3))
    # agrees_N is the probability of the given label under people: reversing takes a to 1 − a in 30 % of the synthetic records.
    assert noisy.agrees_N[noisy.golden_N].mean() == pytest.approx(clean.agrees_N[clean.golden_N].mean(), abs=0.01)
    expected = 0.7 * clean.agrees_N[~clean.golden_N].mean() + 0.3 * (1 - clean.agrees_N[~clean.golden_N].mean())
    assert noisy.agrees_N[~noisy.golden_N].mean() == pytest.approx(expected, abs=0.01)


def test_a_local_bias_spares_what_looks_like_people() -> None:
    def agreement(**parameters: float) -> float:
        data = WorldModel(World(records=20_000, label_bias=1.5, text_shift=3.0, **parameters)).sample()
        return float(data.agrees_N[~data.golden_N].mean())

    assert agreement(bias_locality=1.0) > agreement(bias_locality=0.0)


def test_the_true_ratio_is_that_of_the_densities() -> None:
    model = WorldModel(World(features=3, prompt_features=2, text_shift=1.3, prompt_shift=0.7))
    rng = np.random.default_rng(0)
    prompt, y = rng.normal(size=(5, 2)), rng.normal(size=(5, 3))

    def log_normal(mean: np.ndarray) -> np.ndarray:
        return -0.5 * ((y - mean) ** 2).sum(axis=1)  # both have the unit covariance: the constants cancel

    people = prompt @ model.context_dp.T
    expected = log_normal(people) - log_normal(people + model.text_shift_Sd[1])
    assert model.true_ratio(y, prompt, 1) == pytest.approx(expected, rel=1e-12)


def test_no_policy_wins_half_and_the_reward_itself_wins_most() -> None:
    model = WorldModel(World(features=6))
    none, gold, random = (
        model.gold_win_rate(theta).mean() for theta in (np.zeros(6), model.reward_d, np.random.default_rng(1).normal(size=6))
    )
    assert none == pytest.approx(0.5, abs=1e-12)
    assert gold > random + 0.05 and gold > 0.75


def test_a_more_confident_policy_of_the_same_direction_wins_no_more() -> None:
    model = WorldModel(World(features=6))
    assert model.gold_win_rate(3.0 * model.reward_d).mean() == pytest.approx(model.gold_win_rate(model.reward_d).mean(), abs=1e-5)


def test_policies_are_tilted_to_the_divergence_asked_for() -> None:
    scores = np.random.default_rng(0).normal(size=(50, 16))
    p = tilted_to(scores, 0.7)
    assert (p * np.log(p * 16)).sum(axis=1).mean() == pytest.approx(0.7, abs=1e-4)
    # One prompt, two candidates, scores 0 and 1, t = 1: p = σ(1) = .7311, KL = p log 2p + (1−p) log 2(1−p) = .1110.
    assert tilted_to(np.array([[0.0, 1.0]]), 0.11094387)[0] == pytest.approx([0.2689414, 0.7310586], abs=1e-5)


def test_random_worlds_differ_and_are_within_their_bounds() -> None:
    worlds = [random_world(seed) for seed in range(60)]
    assert len({w.model_dump_json() for w in worlds}) == 60
    assert all(0.02 <= w.golden_share <= 0.5 and 400 <= w.records <= 4000 for w in worlds)
    for kind in ("prompt_shift", "text_shift", "golden_shift", "label_bias", "noise", "curvature"):
        assert {getattr(w, kind) == 0 for w in worlds} == {True, False}, kind

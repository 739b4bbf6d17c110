"""The prompt part: counts by prompt, shrinkage against an independent optimum, and log-ratios against exact topic shares."""

from __future__ import annotations

import numpy as np
import pytest

from dora_core.classifier.model import GOLDEN, Examples
from dora_core.classifier.prompt import KEEP_ERRORS, STEEPEST, PromptCounts, PromptModel, fit_prompt, fit_slope
from dora_core.models.ragged import Ragged

RARE = [100 + i for i in range(4)]


def test_rows_are_counted_by_prompt_and_the_golden_column_has_the_mixtures_rows_on_both_sides():
    head = np.array([GOLDEN, 0, GOLDEN, 1, GOLDEN])
    prompts, extra = ["a", "a", "b", "b", "c"], np.array([False, False, False, False, True])
    examples = Examples(prompts, ["y"] * 5, head, np.arange(5, dtype=np.uint64), np.zeros(5, dtype=np.int64), extra)
    counts = PromptCounts.of(prompts, *examples.prompt_targets(2), np.array([1, 1, 2, 2, 0]))
    assert counts.prompts == ["a", "b", "c"] and counts.place_N.tolist() == [0, 0, 1, 1, 2] and counts.slice_P.tolist() == [1, 2, 0]
    # Columns: pool against the mixture's golden rows, then golden against source 0 and source 1.
    assert counts.weight_PC.tolist() == [[2, 2, 1], [2, 1, 2], [1, 1, 1]]
    assert counts.target_PC.tolist() == [[0.5, 0.5, 1], [0.5, 1, 0.5], [1, 1, 1]]
    # Pool 3 rows, mixture 2; 3 golden rows against 1 of either source; half a row is added to each.
    assert counts.prior_C == pytest.approx(np.log([3.5 / 2.5, 3.5 / 1.5, 3.5 / 1.5]))


def test_slope_is_the_minimum_of_the_log_loss_found_by_search():
    rng = np.random.default_rng(0)
    z, prior, weight = rng.normal(size=2000), -0.7, rng.integers(1, 5, 2000).astype(float)
    target = rng.binomial(weight.astype(int), 1 / (1 + np.exp(-(prior + 1.7 * z)))) / weight
    grid = np.linspace(0, STEEPEST, 40_001)
    losses = [(weight * (np.logaddexp(0, prior + a * z) - target * (prior + a * z))).sum() for a in grid[15_000:19_500]]
    assert fit_slope(z, target, weight, prior) == pytest.approx(grid[15_000 + int(np.argmin(losses))], abs=2e-4)


def test_slope_is_zero_for_noise_for_the_wrong_sign_and_where_every_prompt_has_both_sides():
    rng = np.random.default_rng(1)
    z, weight = rng.normal(size=500), np.full(500, 2.0)
    assert fit_slope(z, np.full(500, 0.5), weight, 0.0) == 0.0, "one golden and one other answer to every prompt"
    assert fit_slope(z, 1 / (1 + np.exp(z)), weight, 0.0) == 0.0
    found = [fit_slope(rng.normal(size=500), (rng.random(500) < 0.5).astype(float), weight, 0.0) for _ in range(40)]
    assert np.mean(np.array(found) > 0) < 0.15  # 2 standard errors
    assert KEEP_ERRORS == 2.0


def test_log_ratios_of_topics_and_of_a_golden_pool_with_other_prompts():
    """Four topics, one token each, beside noise tokens. p_golden = (.4, .4, .1, .1), q = (.1, .1, .4, .4); extra golden rows only answer
    topic 0. So log p/q of the pool is known by counting, and the wide margin allows for the penalty."""
    rng = np.random.default_rng(2)
    golden, source = rng.choice(4, 1500, p=[0.4, 0.4, 0.1, 0.1]), rng.choice(4, 1500, p=[0.1, 0.1, 0.4, 0.4])
    topics = np.concatenate([golden, source, np.zeros(500, dtype=int)])
    head = np.repeat([GOLDEN, 0, GOLDEN], [1500, 1500, 500])
    tokens = [[RARE[t], *rng.integers(0, 50, 4)] for t in topics]
    prompts = [f"{i}" for i in range(len(topics))]
    examples = Examples(prompts, ["y"] * 3500, head, np.arange(3500, dtype=np.uint64), np.zeros(3500, np.int64), np.arange(3500) >= 3000)
    counts = PromptCounts.of(prompts, *examples.prompt_targets(1), np.arange(3500) % 10)
    model, held = fit_prompt(Ragged.of(tokens), counts)
    of_topic = np.array([held[topics == t].mean(axis=0) for t in range(4)])
    pool = np.bincount(np.concatenate([golden, np.zeros(500, dtype=int)])) / 2000
    expected = np.log(np.column_stack([pool / (np.bincount(golden) / 1500), pool / (np.bincount(source) / 1500)]))
    np.testing.assert_allclose(of_topic, expected, atol=0.25)
    again = model(Ragged.of(tokens[:5]))
    assert again.shape == (5, 2)


def test_a_saved_model_is_the_same(tmp_path):
    rng = np.random.default_rng(3)
    counts = PromptCounts.of([str(i) for i in range(60)], (rng.random((60, 2)) < 0.5) * 1.0, np.ones((60, 2)), np.arange(60) % 10)
    texts = Ragged.of(rng.integers(0, 9, (60, 5)).tolist())
    model, _ = fit_prompt(texts, counts)
    model.save(tmp_path)
    np.testing.assert_array_equal(PromptModel.load(tmp_path)(texts), model(texts))

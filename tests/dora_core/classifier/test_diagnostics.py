"""The diagnostics of source classifiers against arithmetic and known cases: AUC, reliability, leaks, and indistinguishable sources."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_core.classifier.diagnostics import (
    auc,
    auc_interval,
    auc_resamples,
    diagnose,
    family_interval,
    reliability,
    within_prompt_auc,
)
from dora_core.classifier.model import GOLDEN, Examples
from dora_core.classifier.scaling import Scaling
from dora_core.data.records import fold_of

PLAIN = Scaling()


def test_auc_by_hand():
    scores, golden = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert auc(scores, golden)[0] == (1 + 0.5 + 1 + 1) / 4  # pairs: .4>.1, .4=.4, .8>.1, .8>.4
    weights = np.array([[2.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]])
    np.testing.assert_array_equal(auc(scores, golden, weights), [1.0, np.nan])


@given(st.integers(0, 1000))
def test_auc_equals_the_count_of_pairs(seed):
    rng = np.random.default_rng(seed)
    scores, golden = rng.integers(0, 6, 30).astype(float), rng.random(30) < 0.5
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[golden] for b in scores[~golden]]
    assert auc(scores, golden)[0] == pytest.approx(np.mean(pairs), nan_ok=True)


def test_auc_interval_is_wider_when_rows_of_a_prompt_repeat():
    rng = np.random.default_rng(0)
    golden = np.arange(200) % 2 == 0
    scores = rng.normal(size=200) + golden
    one_each = auc_interval(auc_resamples(scores, golden, np.arange(200, dtype=np.uint64)))
    repeated = auc_interval(auc_resamples(np.tile(scores, 4), np.tile(golden, 4), np.tile(np.arange(200, dtype=np.uint64), 4)))
    assert one_each[0] < auc(scores, golden)[0] < one_each[1]
    assert repeated == pytest.approx(one_each, abs=0.01)  # copies add no information


def test_within_prompt_auc_ignores_the_prompt():
    prompts, golden = np.array([1, 1, 2, 2, 3], dtype=np.uint64), np.array([True, False, True, False, True])
    assert within_prompt_auc(np.array([0.2, 0.1, 0.9, 0.8, 0.0]), golden, prompts) == 1.0
    assert within_prompt_auc(np.array([0.2, 0.1, 0.7, 0.8, 0.0]), golden, prompts) == 0.5


def test_reliability_by_hand():
    error, bins = reliability(np.array([0.12, 0.18, 0.95, 1.0]), np.array([False, True, True, True]))
    assert bins["count"] == [2, 2] and bins["accuracy"] == [0.5, 1.0]
    assert bins["confidence"] == pytest.approx([0.15, 0.975])
    assert error == pytest.approx(0.5 * 0.35 + 0.5 * 0.025)


def test_a_source_that_answers_other_prompts_is_named_and_judged_given_the_prompt():
    """a differs in its prompts alone: joint logits separate it, those given the prompt do not. r = ±2 of a has slope 1, weights 2σ(−2) on
    both of a's cells, so the weighted AUC is that of the noise."""
    n = 800
    rng, head = np.random.default_rng(0), np.where(np.arange(n) % 2 == 0, GOLDEN, 0)
    log_ratio = np.where((head == GOLDEN) == (rng.random(n) < 0.88), 2.0, -2.0)  # σ(2) = .88
    hashes = np.arange(n, dtype=np.uint64)
    examples = Examples(["q"] * n, ["same"] * n, head, hashes, fold_of(hashes, 2))
    noise, prompt = 0.1 * rng.normal(size=(n, 1)), np.column_stack([np.zeros(n), log_ratio])
    table, warnings = diagnose(examples, ["a"], noise, [PLAIN], prompt, np.array([0.0, 1.0]))
    assert table["a"]["told_apart"] and table["a"]["auc"] > 0.8 and table["a"]["prompt_only_auc"] > 0.8
    assert not table["a"]["given_prompt"]["told_apart"] and table["a"]["given_prompt"]["auc"] == pytest.approx(0.5, abs=0.06)
    assert any("differs from golden in its prompts alone" in w for w in warnings) and any("the prompt alone reaches" in w for w in warnings)
    with_none, _ = diagnose(examples, ["a"], noise, [PLAIN], prompt, np.zeros(2))
    assert {k: with_none["a"][k] for k in with_none["a"]["given_prompt"]} == with_none["a"]["given_prompt"]


def test_diagnose_on_a_length_cue():
    n = 200
    golden = np.arange(n) % 2 == 0
    responses = ["short" if g else "a much longer answer" for g in golden]
    hashes = np.arange(n, dtype=np.uint64)
    examples = Examples(["q"] * n, responses, np.where(golden, GOLDEN, 0), hashes, fold_of(hashes, 2))
    logits = np.random.default_rng(0).normal(size=(n, 1)) + 2 * golden[:, None]
    table, warnings = diagnose(examples, ["gpt"], logits, [PLAIN], np.zeros((n, 2)), np.zeros(2))
    assert table["gpt"]["length_only_auc"] == 1.0 and table["gpt"]["prompt_only_auc"] == 0.5 and table["gpt"]["gamma"] == 1.0
    assert table["gpt"]["within_prompt_auc"] is None  # no prompt has both
    assert [w for w in warnings if "length alone" in w]


def test_a_source_too_small_to_judge_is_none_and_named():
    hashes = np.arange(10, dtype=np.uint64)
    examples = Examples(["q"] * 10, ["r"] * 10, np.array([GOLDEN] * 10), hashes, fold_of(hashes, 2))
    table, warnings = diagnose(examples, ["rare"], np.zeros((10, 1)), [PLAIN], np.zeros((10, 2)), np.zeros(2))
    assert table["rare"]["auc"] is None and table["rare"]["n"] == 0
    assert warnings[0].startswith("rare: only 0")


def test_family_interval_widens_with_the_number_of_heads_and_holds_its_level():
    """30 experiments of 8 sources without shift: at 2.5 % one-sided at most a few of them call a source different."""
    resamples = np.random.default_rng(0).normal(0.6, 0.02, 200)
    one, many = family_interval(0.6, resamples, 1), family_interval(0.6, resamples, 8)
    assert one == pytest.approx((0.6 - 1.96 * resamples.std(), 0.6 + 1.96 * resamples.std()), rel=1e-4)
    assert many[0] < one[0] < one[1] < many[1]
    rng, wrong = np.random.default_rng(1), 0
    prompts, golden = np.arange(200, dtype=np.uint64), np.arange(200) % 2 == 0
    for _ in range(30):
        scores = rng.normal(size=(8, 200))
        lows = [family_interval(float(auc(s, golden)[0]), auc_resamples(s, golden, prompts), 8)[0] for s in scores]
        wrong += max(lows) > 0.5
    assert wrong <= 4  # P(more) < 1 % at a rate of 2.5 %, and about 4 % at twice that


def test_a_source_that_cannot_be_told_apart_is_named_with_its_interval():
    n = 400
    rng, head = np.random.default_rng(0), np.where(np.arange(n) % 2 == 0, GOLDEN, 0)
    hashes = np.arange(n, dtype=np.uint64)
    examples = Examples(["q"] * n, ["same"] * n, head, hashes, fold_of(hashes, 2))
    table, warnings = diagnose(examples, ["twin"], rng.normal(size=(n, 1)), [PLAIN], np.zeros((n, 2)), np.zeros(2))
    assert table["twin"]["told_apart"] is False and table["twin"]["auc_family_low"] < 0.5
    assert any(w.startswith("twin: cannot be distinguished from golden (AUC") for w in warnings)
    table, warnings = diagnose(
        examples, ["other"], rng.normal(size=(n, 1)) + (head == GOLDEN)[:, None], [PLAIN], np.zeros((n, 2)), np.zeros(2)
    )
    assert table["other"]["told_apart"] is True and not any("cannot be told" in w for w in warnings)

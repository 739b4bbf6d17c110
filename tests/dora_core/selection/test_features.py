"""Features of texts: counts by hand, constants of the fitting rows."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from dora_core.selection.features import NGRAM_SCALE, POLICY_WIDTH, PolicyFeatures, TextFeatures, hashed_ngrams, policy_vectors

PROMPTS = ["How do I sleep better?"] * 4
RESPONSES = ["Go to bed early.", "Go, go, go to bed!", "Drink tea and read a book before you sleep.", "No idea."]


def test_counts_by_hand() -> None:
    expected = np.zeros(64)
    for gram, weight in (("go", 3.0), ("to", 1.0), ("go go", 0.5 * 2), ("go to", 0.5)):
        code = zlib.crc32(gram.encode())
        expected[(code >> 1) % 64] += weight if code % 2 == 0 else -weight
    assert hashed_ngrams(["Go, go GO to"], 64)[0] == pytest.approx(expected)
    assert not hashed_ngrams(["", "!?"], 64).any()


def test_columns_are_standardised_on_the_fitting_rows() -> None:
    features = TextFeatures.fit(PROMPTS, RESPONSES, buckets=32)
    found = features(PROMPTS, RESPONSES)
    width = features.basis.width
    spread = found.std(axis=0)
    assert found.mean(axis=0) == pytest.approx(np.zeros(found.shape[1]), abs=1e-9)
    assert spread[:width][spread[:width] > 0] == pytest.approx(1.0)
    assert spread[width:][spread[width:] > 0] == pytest.approx(NGRAM_SCALE)


def test_a_row_does_not_depend_on_the_others() -> None:
    features = TextFeatures.fit(PROMPTS, RESPONSES, buckets=32)
    whole = features(PROMPTS, RESPONSES)
    for i in range(4):
        assert features(PROMPTS[i : i + 1], RESPONSES[i : i + 1])[0] == pytest.approx(whole[i], abs=1e-12)


def test_an_odd_text_is_limited() -> None:
    features = TextFeatures.fit(PROMPTS, RESPONSES, buckets=32)
    assert np.abs(features(["?"], ["go " * 100_000])).max() <= 8.0


def test_a_policy_s_vectors_are_its_log_probabilities_and_hidden_state() -> None:
    vectors = policy_vectors(np.array([[-6.0, 1.0, 2.0], [-4.0, 3.0, 5.0]]), np.array([3, 4]))
    assert vectors == pytest.approx(np.array([[-6.0, -2.0, 1.0, 2.0], [-4.0, -1.0, 3.0, 5.0]]))


def test_a_wide_hidden_state_is_projected_and_keeps_its_inner_products() -> None:
    """Of 40 random directions in 2,000 dimensions the cosines change by 1/√128 = .09 on average; the same matrix every time."""
    hidden = np.random.default_rng(0).standard_normal((40, 2000)) / 2000**0.5
    wide = np.column_stack([np.zeros(40), hidden])
    found = policy_vectors(wide, np.ones(40))[:, 2:]
    assert found.shape == (40, POLICY_WIDTH) and np.array_equal(found, policy_vectors(wide, np.ones(40))[:, 2:])
    assert np.sqrt(np.mean((found @ found.T - hidden @ hidden.T) ** 2)) == pytest.approx(POLICY_WIDTH**-0.5, rel=0.2)


def test_a_policy_s_features_are_standardised() -> None:
    vectors = np.column_stack([np.arange(6.0), np.arange(6.0) ** 2, np.full(6, 3.0), [0, 0, 0, 1, 1, 1]])
    found = PolicyFeatures.fit(vectors)(vectors)
    assert found.mean(axis=0) == pytest.approx(0.0) and found.std(axis=0) == pytest.approx([1, 1, 0, NGRAM_SCALE])
    assert np.abs(PolicyFeatures.fit(vectors)(vectors + 1e9)).max() <= 8.0

"""Features of texts: counts by hand, constants of the fitting rows."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from dora_core.selection.features import NGRAM_SCALE, TextFeatures, hashed_ngrams

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

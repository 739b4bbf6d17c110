"""The golden share among unlabelled rows where it is identified, and the bound it is where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_core.classifier.golden_share import best_bin, golden_share


def draw(share: float, overlap: float, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of golden N(0, 1) rows and of rows that are golden with probability ``share``, else N(−3, 1); ``overlap`` of
    the synthetic ones look exactly golden."""
    rng = np.random.default_rng(seed)
    golden = rng.normal(size=rows)
    looks_golden = rng.random(rows) < share + (1 - share) * overlap
    return golden, rng.normal(size=rows) - 3.0 * ~looks_golden


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_irreducible_share_is_found(share):
    estimates = [best_bin(*draw(share, 0.0, 2000, seed)) for seed in range(10)]
    assert np.mean(estimates) == pytest.approx(share, abs=0.04)


def test_what_looks_golden_counts_as_golden():
    """a⁺ = a + (1 − a)·overlap: not identified by any method, as the docstring states."""
    assert np.mean([best_bin(*draw(0.3, 0.4, 2000, seed)) for seed in range(10)]) == pytest.approx(0.3 + 0.7 * 0.4, abs=0.04)


def test_interval_covers_the_truth():
    golden, unlabelled = draw(0.3, 0.0, 1500, 0)
    is_golden = np.arange(3000) < 1500
    share = golden_share(np.concatenate([golden, unlabelled]), is_golden, np.arange(3000, dtype=np.uint64))
    assert 0.2 < share.low <= share.value <= share.high < 0.45 and share.low < 0.3 < share.high


@given(st.integers(0, 500), st.floats(0.1, 10))
def test_any_monotone_map_of_the_scores_gives_the_same(seed, scale):
    golden, unlabelled = draw(0.4, 0.0, 60, seed)
    value = best_bin(golden, unlabelled)
    assert 0 < value <= 1
    assert best_bin(np.exp(golden * scale), np.exp(unlabelled * scale)) == value


def test_nothing_golden_and_everything_golden():
    scores = np.random.default_rng(0).normal(size=1000)
    assert best_bin(scores, scores - 100) == 1 / 1000
    assert best_bin(scores, scores) == pytest.approx(1.0)

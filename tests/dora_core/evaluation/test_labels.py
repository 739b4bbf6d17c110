"""Metrics of labelled responses: by hand, and against the definition over all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from dora_core.evaluation import labels
from dora_core.evaluation.labels import joined_pairs, label_accuracy, label_auc, label_pairs
from dora_core.evaluation.metrics import preference_pairs

OPTIONS = (200, 0.95, 0)


def test_accuracy_is_the_sign_on_the_side_of_the_label() -> None:
    score, desirable = np.array([2.0, -1.0, 0.0, 3.0, -4.0]), np.array([True, True, True, False, False])
    assert label_accuracy(score, desirable).tolist() == [1.0, 0.0, 0.5, 0.0, 1.0]


def test_auc_by_hand() -> None:
    # desirable 3, 1; undesirable 1, 0: 3>1, 3>0, 1=1 (½), 1>0 → 3.5 of 4
    found = label_auc(np.array([3.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False]), np.arange(4), *OPTIONS)
    assert found is not None and (found.value, found.n) == (3.5 / 4, 4)
    assert found.low <= found.value <= found.high


def test_auc_and_its_interval_against_the_definition() -> None:
    rng = np.random.default_rng(3)
    score, desirable, prompt = rng.integers(0, 12, 60).astype(float), rng.random(60) < 0.3, rng.integers(0, 25, 60) * 7
    score[desirable] += 2

    def by_pairs(rows: np.ndarray) -> float:
        good, bad = score[rows][desirable[rows]], score[rows][~desirable[rows]]
        gaps = good[:, None] - bad[None, :]
        return float(((gaps > 0) + (gaps == 0) / 2).mean())

    found = label_auc(score, desirable, prompt, *OPTIONS)
    prompts = np.unique(prompt)
    drawn = np.random.default_rng(0).integers(0, len(prompts), size=(200, len(prompts)))
    resampled = [by_pairs(np.concatenate([np.flatnonzero(prompt == prompts[k]) for k in draw])) for draw in drawn]
    assert found is not None and found.value == pytest.approx(by_pairs(np.arange(60)))
    assert [found.low, found.high] == pytest.approx(np.quantile(resampled, [0.025, 0.975]))


def test_no_auc_of_one_label() -> None:
    score, prompt = np.array([1.0, 2.0]), np.arange(2)
    assert label_auc(score, np.array([True, True]), prompt, *OPTIONS) is None
    assert label_auc(score, np.array([False, False]), prompt, *OPTIONS) is None


def test_a_constant_score_is_chance() -> None:
    found = label_auc(np.zeros(6), np.array([True, False] * 3), np.arange(6), *OPTIONS)
    assert found is not None and (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_one_prompt_has_no_other_to_resample() -> None:
    found = label_auc(np.array([1.0, 0.0]), np.array([True, False]), np.array([9, 9]), *OPTIONS)
    assert found is not None and (found.value, found.low, found.high, found.n) == (1.0, 1.0, 1.0, 1)


def test_pairs_only_among_the_labelled_responses_of_one_prompt() -> None:
    rewards = [[1.0], [5.0, 2.0], [0.0], [0.0], [1.0], [0.0]]
    labelled, prompts = [True, False, True, True, True, True], np.array([8, 8, 8, 8, 9, 7], dtype=np.uint64)
    found = label_pairs(rewards, labelled, prompts)
    assert list(zip(found.record_P, found.winner_P, found.loser_P, found.gap_P, strict=True)) == [(0, 0, 3, 1.0), (0, 0, 4, 1.0)]
    both = joined_pairs(preference_pairs(rewards), found)
    assert both.winner_P.tolist() == [1, 0, 0] and both.gap_P.tolist() == [3.0, 1.0, 1.0]


def test_no_pair_is_an_empty_table() -> None:
    found = label_pairs([[1.0], [0.0]], [True, True], np.array([1, 2]))
    assert all(len(column) == 0 for column in vars(found).values()) and found.winner_P.dtype.kind == "i"


def test_a_prompt_asked_very_often_makes_a_bounded_number_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "PAIRED_AT_MOST", 3)
    rewards = [[1.0]] * 10 + [[0.0]] * 2
    found = label_pairs(rewards, [True] * 12, np.zeros(12, dtype=int))
    assert sorted({*found.winner_P.tolist()}) == [0, 3, 6] and len(found.gap_P) == 3 * 2

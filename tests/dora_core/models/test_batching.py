"""Batches by length, and batches that shrink until they fit into memory: every row once, and an error where one row does not fit."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dora_core.errors import ModelError
from dora_core.models.batching import TokenBudget, in_batches, token_batches
from tests.dora_core.models.limited_memory import MESSAGE


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(20, 200), st.booleans())
def test_batches_hold_every_row_once_within_the_budget(lengths, budget, training):
    batches = token_batches(lengths, budget, np.random.default_rng(0) if training else None)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= budget for b in batches)


@pytest.mark.fault(3)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 500), st.integers(50, 300))
def test_every_row_is_computed_once_in_batches_that_fit(lengths, asked, limit) -> None:
    """``limit`` holds any single row."""
    budget, tried = TokenBudget(asked), list[int]()

    def compute(batch: np.ndarray) -> list[int]:
        tried.append(len(batch) * max(lengths[i] for i in batch))
        if tried[-1] > limit:
            raise torch.OutOfMemoryError(MESSAGE)
        return batch.tolist()

    done = list(in_batches(compute, lengths, budget))
    assert sorted(row for _, rows in done for row in rows) == list(range(len(lengths)))
    assert all(batch.tolist() == rows for batch, rows in done)
    failed = [size for size in tried if size > limit]
    assert all(after <= before / 2 for before, after in pairwise(failed)), "each is at most half of the last"
    assert (budget.lowered is not None) == bool(failed) and budget.tokens <= asked
    if not failed:
        assert [batch.tolist() for batch, _ in done] == [batch.tolist() for batch in token_batches(lengths, asked)]


@pytest.mark.fault(3)
def test_a_row_that_does_not_fit_alone_says_what_to_change(caplog) -> None:
    def compute(batch: np.ndarray) -> None:
        raise torch.OutOfMemoryError(MESSAGE)

    with caplog.at_level(logging.WARNING), pytest.raises(ModelError) as caught:
        list(in_batches(compute, [9, 9, 9, 9], TokenBudget(100)))
    assert caught.value.message == "out of memory even one row at a time, with 9 tokens: CUDA out of memory"
    assert "gpus_per_worker" in caught.value.hint and "text.max_response_tokens" in caught.value.hint and not caught.value.retryable
    assert [record.message for record in caplog.records] == [
        "out of memory with a batch of 36 tokens, so at most 18 from now on: CUDA out of memory",
        "out of memory with a batch of 18 tokens, so at most 9 from now on: CUDA out of memory",
    ]


def test_scoring_order_follows_from_the_lengths_alone_and_training_order_from_the_generator() -> None:
    assert [b.tolist() for b in token_batches([5, 1, 3, 9], 9)] == [[1, 2], [0], [3]]
    epochs = [[b.tolist() for b in token_batches([4] * 30, 8, np.random.default_rng(seed))] for seed in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]


def test_a_budget_is_shared_only_if_it_is_given_as_one() -> None:
    budget = TokenBudget(8)
    assert TokenBudget.of(budget) is budget and TokenBudget.of(8) is not TokenBudget.of(8)
    assert budget.lowered is None
    budget.lower(6, torch.OutOfMemoryError(MESSAGE), alone=False)
    assert (budget.tokens, budget.asked, budget.lowered) == (3, 8, 3)

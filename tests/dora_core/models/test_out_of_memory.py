"""Batches that the accelerator's memory does not hold: smaller ones give the same results, nothing fails twice, one row is the end."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from dora_core.config.method import GenerateConfig
from dora_core.data.encoding import EncodedResponse
from dora_core.errors import ModelError
from dora_core.models.batching import TokenBudget, in_batches, token_batches
from dora_core.models.generation import sample
from dora_core.models.logprobs import ResponseLogps, score_responses
from dora_core.models.packing import PackedRows

pytestmark = pytest.mark.fault(3)
MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.25 GiB of which 1.02 GiB is free."


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


class Device:
    """A device that holds ``limit`` tokens at once; the model's own code runs up to there."""

    def __init__(self, limit: int):
        self.limit, self.failures, self.passes = limit, 0, 0

    def check(self, tokens: int) -> None:
        self.passes += 1
        if tokens > self.limit:
            self.failures += 1
            raise torch.OutOfMemoryError(MESSAGE)


def test_log_probabilities_are_the_same_to_rounding(policy, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    responses = [EncodedResponse([1, 3 + i], rng.integers(3, 90, 2 + i % 7).tolist(), 0) for i in range(40)]
    logps, device = ResponseLogps(policy.eval()), Device(40)
    expected = score_responses(logps, responses, 0, 10_000, torch.device("cpu"))
    forward = ResponseLogps.forward

    def limited(self: ResponseLogps, rows: PackedRows) -> torch.Tensor:
        device.check(rows.ids_S.numel())
        return forward(self, rows)

    monkeypatch.setattr(ResponseLogps, "forward", limited)
    budget = TokenBudget(10_000)
    assert score_responses(logps, responses, 0, budget, torch.device("cpu")) == pytest.approx(expected, abs=1e-4)
    assert 0 < device.failures < 10 and budget.lowered is not None
    failures = device.failures
    score_responses(logps, responses, 0, budget, torch.device("cpu"))
    assert device.failures == failures, "a budget that is kept does not fail again"


@pytest.fixture
def model() -> transformers.PreTrainedModel:
    torch.manual_seed(1)
    sizes = {"vocab_size": 23, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, initializer_range=0.4)).eval().double()


def drawn(model: transformers.PreTrainedModel, budget: int | TokenBudget, samples: int = 3):
    prompts = [np.random.default_rng(i).integers(6, 23, 1 + i % 8).tolist() for i in range(12)]
    return sample(
        model, prompts, range(12), GenerateConfig(samples=samples, max_new_tokens=20, seed=7), eos_id=5, pad_id=0, batch_tokens=budget
    )


def hold(model: transformers.PreTrainedModel, limit: int) -> Device:
    """From now on the model's cache is held to ``limit`` tokens (rows × columns)."""
    device = Device(limit)
    model.register_forward_pre_hook(lambda _, __, given: device.check(given["attention_mask"].numel()), with_kwargs=True)
    return device


def test_responses_are_the_same_however_often_memory_ran_out(model) -> None:
    """In double precision, where rounding between batches of different shape cannot move a token."""
    together = drawn(model, 10_000)
    device, budget = hold(model, 200), TokenBudget(10_000)
    assert drawn(model, budget) == together
    assert 0 < device.failures < 6 and budget.lowered is not None and budget.lowered <= 200 * 2
    failures = device.failures
    assert drawn(model, budget) == together
    assert device.failures == failures, "a budget that is kept does not fail again"


def test_samples_of_one_prompt_that_do_not_fit_are_the_end(model) -> None:
    hold(model, 30)
    with pytest.raises(ModelError, match="even one row at a time") as caught:
        drawn(model, 10_000)
    assert "generate.samples" in caught.value.hint

"""The supervised task: its loss by hand, any micro-batch, and the likelihood after training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dora_core.config.execution import Execution
from dora_core.config.method import OptimizationConfig, TextConfig
from dora_core.data.encoding import Encoder
from dora_core.data.response_turns import join_turns
from dora_core.models.logprobs import ResponseLogps
from dora_core.training.distributed import Worker
from dora_core.training.loop import FolderHooks, fit
from dora_core.training.microbatches import split_step
from dora_core.training.sft import SftTask
from tests.dora_core.data.chat_families import SEPARATED
from tests.dora_core.training.interrupted_runs import EXAMPLES, sft_task


def gradient(policy) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in policy.parameters()])
    policy.zero_grad()
    return found


def test_the_loss_is_the_mean_negative_log_likelihood_of_response_tokens(policy, tokenizer) -> None:
    """Against a plain forward pass of each example alone, gradient included; the prompt's tokens count for nothing."""
    task = sft_task(policy, tokenizer)
    scale, metrics = task.backward(task.module, [[0, 1], [2, 3, 4]], 0)
    got = scale * gradient(policy)
    total, tokens = torch.zeros(()), 0
    for row in task._rows:
        logp = policy(input_ids=torch.tensor([row.prompt_ids + row.response_ids])).logits[0].log_softmax(-1)
        total = total - sum(logp[len(row.prompt_ids) - 1 + t, token] for t, token in enumerate(row.response_ids))
        tokens += len(row.response_ids)
    (total / tokens).backward()
    assert metrics == pytest.approx({"loss": total.item() / tokens, "tokens": tokens}, rel=1e-5)
    assert task.tokens == [len(row.prompt_ids) + len(row.response_ids) for row in task._rows]
    torch.testing.assert_close(got, gradient(policy), rtol=1e-4, atol=1e-6)


def test_an_empty_micro_batch_runs_and_counts_for_nothing(policy, tokenizer) -> None:
    task = sft_task(policy, tokenizer)
    found = []
    for micro_batches in ([[1, 2]], [[1, 2], []], [[], [1, 2]]):
        scale, metrics = task.backward(task.module, micro_batches, 0)
        found.append((scale, metrics, gradient(policy)))
    for scale, metrics, grad in found[1:]:
        assert (scale, metrics) == (found[0][0], pytest.approx(found[0][1])) and torch.equal(grad, found[0][2])
    scale, metrics = task.backward(task.module, [[]], 0)
    assert metrics == {"loss": 0.0, "tokens": 0.0} and not gradient(policy).any()


def test_training_raises_the_likelihood_of_the_responses(policy, tokenizer, tmp_path: Path) -> None:
    task = sft_task(policy, tokenizer, EXAMPLES)
    config = OptimizationConfig(epochs=20, batch_size=5, learning_rate=1e-2)
    report = fit(task, config, Execution(), Worker(), FolderHooks(tmp_path))
    assert report.curve["loss"][-1] < 0.5 * report.curve["loss"][0]
    assert task.state() == {} and task.exact


def test_sft_loss_is_the_mean_over_tokens_for_any_micro_batch(policy, tokenizer) -> None:
    examples = [([{"role": "user", "content": "a"}], t) for t in ("dog", "one very old dog run home and sat on the mat", "cat sat")]
    norms = []
    for size in (1, 2, 3):
        task = sft_task(policy, tokenizer, examples)
        scale, metrics = task.backward(task.module, split_step([1] * 3, 1, size)[0], 0)
        norms.append((metrics["loss"], scale * float(torch.nn.utils.get_total_norm([p.grad for p in policy.parameters()]))))
        policy.zero_grad()
    assert norms[1:] == [pytest.approx(norms[0], rel=1e-5)] * 2


def test_turns_of_others_are_not_learned(policy, tokenizer) -> None:
    """The loss is the mean over the tokens of both turns of the assistant, against a plain forward pass."""
    tokenizer.chat_template = SEPARATED
    turns = [{"role": role, "content": text} for role, text in (("assistant", "on a"), ("user", "cat"), ("assistant", "mat"))]
    task = SftTask(
        ResponseLogps(policy),
        [],
        [([{"role": "user", "content": "the"}], join_turns(turns))],
        Encoder(tokenizer, TextConfig()),
        Worker(torch.device("cpu")),
        0,
    )
    [row] = task._rows
    [(start, stop)] = row.context
    assert tokenizer.decode(row.response_ids[start:stop]) == "<sep>cat<sep>"
    _, metrics = task.backward(task.module, [[0]], 0)
    logps = policy(input_ids=torch.tensor([row.prompt_ids + row.response_ids])).logits[0].log_softmax(-1)
    at = len(row.prompt_ids) - 1
    learned = [logps[at + t, token].item() for t, token in enumerate(row.response_ids) if not start <= t < stop]
    assert metrics == pytest.approx({"loss": -sum(learned) / len(learned), "tokens": len(learned)}, rel=1e-5)

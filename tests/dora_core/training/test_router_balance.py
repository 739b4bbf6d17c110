"""The balance of experts is that of the whole step: alone or on two ranks, in one micro-batch or several, beside the task's gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from dora_core.models.routers import Routers
from dora_core.training.distributed import Sharding, Worker, full_weights, wrap
from dora_core.training.router_balance import BalancedTask
from tests.dora_core.models.test_routers import balance, plain_logits
from tests.dora_core.training.alignment_tasks import RECORDS, make_data, make_task
from tests.dora_core.training.interrupted_runs import sft_task
from tests.dora_core.training.sharded_ranks import tokenizer
from tests.ranks import run_ranks

WEIGHT = 0.3


def mixture() -> transformers.PreTrainedModel:
    config = transformers.MixtralConfig(
        vocab_size=len(tokenizer()) + 1, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.MixtralForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if ".gate." in name:
            torch.nn.init.normal_(weight, std=0.5)
    return model


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def step(micro_batches: list[list[int]], kind: str, balanced: bool = True) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradient and metrics of one step of a fresh model."""
    model = mixture()
    task = sft_task(model, tokenizer()) if kind == "sft" else make_task(model, tokenizer(), make_data(model, tokenizer()))
    made = BalancedTask(task, Routers(model), WEIGHT, Worker()) if balanced else task
    scale, metrics = made.backward(made.module, micro_batches, 0)
    return {name: gradient * scale for name, gradient in gradients(model).items()}, metrics


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("kind", ["sft", "align"])
def test_a_step_is_the_same_however_it_is_cut_and_adds_the_balance_to_the_task(kind: str) -> None:
    whole, metrics = step([[0, 1, 2]], kind)
    for cut in ([[0], [1, 2]], [[2], [], [1], [0]]):
        found, also = step(cut, kind)
        assert_same(found, whole)
        assert also["router_loss"] == pytest.approx(metrics["router_loss"], rel=1e-6)
    alone, _ = step([[0, 1, 2]], kind, balanced=False)
    model = mixture()
    task = sft_task(model, tokenizer()) if kind == "sft" else make_task(model, tokenizer(), make_data(model, tokenizer()))
    rows = [[task._rows[i]] for i in range(3)] if kind == "sft" else [task._data[i].responses for i in range(3)]
    model.set_attn_implementation("sdpa")
    loss = balance(plain_logits(model, rows))
    (loss * WEIGHT).backward()
    added = gradients(model)
    assert metrics["router_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert_same({name: gradient for name, gradient in whole.items()}, {name: alone[name] + added.get(name, 0.0) for name in whole})
    assert added["model.layers.1.mlp.gate.weight"].abs().max() > 1e-4


def rank_main(worker: Worker, root: str) -> None:
    for strategy in ("ddp", "fsdp"):
        model = mixture()
        data = make_data(model, tokenizer())
        task = make_task(model, tokenizer(), data, worker)
        module = wrap(task.module, strategy, worker, task.layers, Sharding(worker))
        balanced = BalancedTask(task, Routers(model), WEIGHT, worker)
        scale, _ = balanced.backward(module, [[0], [2]] if worker.rank == 0 else [[1], []], 0)
        with torch.no_grad():
            for p in module.parameters():  # the gradient in place of the weight, so that it is gathered like one
                p.copy_(p.grad * scale)
        weights = full_weights(module)
        if worker.rank == 0:
            torch.save(weights, Path(root) / f"{strategy}.pt")


def test_two_ranks_replicated_or_sharded_balance_as_one(tmp_path: Path) -> None:
    run_ranks(rank_main, str(tmp_path))
    expected, _ = step([[0, 1, 2]], "align")
    for strategy in ("ddp", "fsdp"):
        found = torch.load(tmp_path / f"{strategy}.pt", weights_only=True)
        assert_same({name: found[f"model.{name}"] for name in expected}, expected)


def test_the_tasks_state_is_kept() -> None:
    model = mixture()
    task = make_task(model, tokenizer(), make_data(model, tokenizer()))
    made = BalancedTask(task, Routers(model), WEIGHT, Worker())
    made.restore(task.state() | {"offset": 7.5})
    assert made.state()["offset"] == task.state()["offset"] == 7.5
    assert (made.module, made.layers, list(made.tokens), made.exact) == (task.module, task.layers, list(task.tokens), task.exact)
    assert len(RECORDS) > len(task.tokens)

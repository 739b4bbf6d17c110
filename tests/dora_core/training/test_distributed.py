"""Workers: sums and gradients over ranks, and sharded training (DDP, FSDP2) against one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dora_core.config.execution import Execution
from dora_core.config.method import ModelConfig, OptimizationConfig
from dora_core.models.loading import build_policy, train_tokenizer
from dora_core.training.distributed import Worker, full_weights, gradient_norm, gradient_sync, gradients, scale_gradients, wrap
from dora_core.training.loop import FolderHooks, fit
from tests.dora_core.training.alignment_tasks import RECORDS, make_data, make_task
from tests.ranks import run_ranks

INPUTS = torch.arange(12.0).reshape(2, 2, 3) / 10
"""By rank and micro-batch."""


def _layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))


def _primitives(worker: Worker) -> dict[str, Any]:
    """Sums, gathered lists, and the gradient of two micro-batches of which only the last is reduced, as seen by one rank."""
    found: dict[str, Any] = {
        "ranks": (worker.rank, worker.world_size),
        "sum": worker.sum(torch.tensor([1.0 + worker.rank, 10.0], dtype=torch.float32)),
        "gather": worker.gather({"rank": worker.rank}),
    }
    for strategy in ("ddp", "fsdp"):
        plain = _layer()
        module = wrap(plain, strategy, worker, [plain[0]])
        before = []
        for micro in range(2):
            with gradient_sync(module, micro == 1):
                module(INPUTS[worker.rank, micro][None]).sum().backward()
            before.append(gradient_norm(module) if strategy == "fsdp" or micro else float(gradients(module)[0].norm()))
        scale_gradients(module, 0.5)
        full = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in gradients(module)]
        found[strategy] = {"norms": before, "gradient": torch.cat([g.flatten() for g in full]), "half": gradient_norm(module)}
        found[strategy]["weights"] = full_weights(module)
    return found


def test_one_process_needs_no_group() -> None:
    worker = Worker.current()
    assert (worker.rank, worker.world_size, worker.group) == (0, 1, None)
    assert worker.gather("x") == ["x"]
    total = worker.sum(torch.tensor([0.1], dtype=torch.float32))
    assert total.dtype == torch.float64 and total.item() == pytest.approx(0.1)
    module = nn.Linear(2, 1)
    assert wrap(module, "fsdp", worker, []) is module and full_weights(module).keys() == {"weight", "bias"}


def test_gradients_are_scaled_and_measured_over_all_parameters() -> None:
    module = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Linear(1, 1)])
    module[0].weight.grad, module[1].weight.grad = torch.tensor([[3.0]]), torch.tensor([[4.0]])
    assert len(gradients(module)) == 2 and gradient_norm(module) == 5.0
    scale_gradients(module, 2.0)
    assert (module[0].weight.grad.item(), module[1].weight.grad.item(), gradient_norm(module)) == (6.0, 8.0, 10.0)
    kept = module[0].weight.grad
    scale_gradients(module, 1.0)
    assert module[0].weight.grad is kept and kept._version == 1, "nothing is written for a factor of 1"


STEPS = 6


def _train(worker: Worker, strategy: str, folder: Path) -> tuple[int | None, dict[str, torch.Tensor]]:
    """(step of the checkpoint it went on from, weights) after six steps; leaves checkpoints of 2 and 4: call again to resume."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([w for r in RECORDS for w in (r["prompt"], *r["responses"])] * 3, 300)
    policy = build_policy(ModelConfig(hidden_size=32, layers=2, heads=2), tokenizer, 64)
    execution = Execution(strategy=strategy, micro_batch_size=1, checkpoint_every=2)
    task = make_task(policy, tokenizer, make_data(policy, tokenizer), worker, execution)
    report = fit(task, OptimizationConfig(epochs=STEPS, batch_size=3, learning_rate=1e-3), execution, worker, FolderHooks(folder))
    assert len(report.curve["loss"]) == report.steps == STEPS and not report.warnings
    return report.resumed_from, full_weights(task.module)


def _rank_main(worker: Worker, folder: str) -> None:
    torch.save(_primitives(worker), Path(folder) / f"primitives-{worker.rank}.pt")
    for strategy in ("ddp", "fsdp"):
        results = [_train(worker, strategy, Path(folder) / checkpoints) for checkpoints in (strategy, "alone")]
        if worker.rank == 0:
            torch.save(results, Path(folder) / f"{strategy}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one process, and of two that also resume from its checkpoints."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(_train(Worker(), "ddp", folder / "alone"), folder / "alone.pt")
    run_ranks(_rank_main, str(folder))
    return folder


@pytest.fixture(scope="module")
def trainings(folder: Path) -> dict[str, tuple[int | None, dict[str, torch.Tensor]]]:
    """One process and two, replicated and sharded; and each resumed from the checkpoint of the other number of processes."""
    trainings = {"alone": torch.load(folder / "alone.pt", weights_only=True)}
    for strategy in ("ddp", "fsdp"):
        trainings[strategy], trainings[f"alone, then {strategy}"] = torch.load(folder / f"{strategy}.pt", weights_only=True)
        trainings[f"{strategy}, then alone"] = _train(Worker(), "ddp", folder / strategy)
    return trainings


def test_two_ranks_sum_gather_and_reduce_the_last_micro_batch(folder: Path) -> None:
    plain = _layer()
    (plain(INPUTS.reshape(4, 3)).sum() / 2).backward()  # DDP and FSDP average over two ranks what each sums over its micro-batches
    expected = torch.cat([g.flatten() for g in gradients(plain)])
    for rank in range(2):
        found = torch.load(folder / f"primitives-{rank}.pt", weights_only=False)
        assert found["ranks"] == (rank, 2) and found["gather"] == [{"rank": 0}, {"rank": 1}]
        assert found["sum"].tolist() == [3.0, 20.0] and found["sum"].dtype == torch.float64
        for strategy in ("ddp", "fsdp"):
            torch.testing.assert_close(found[strategy]["gradient"], expected / 2)
            assert found[strategy]["norms"][-1] == pytest.approx(expected.norm().item(), rel=1e-5)
            assert found[strategy]["half"] == pytest.approx(expected.norm().item() / 2, rel=1e-5)
            names = _layer().state_dict().keys() if rank == 0 else set()
            assert found[strategy]["weights"].keys() == names, "whole, unwrapped and on rank 0 alone"
    first = [torch.load(folder / f"primitives-{rank}.pt", weights_only=False)["ddp"]["norms"][0] for rank in range(2)]
    assert first[0] != pytest.approx(first[1], rel=1e-3), "the first micro-batch was not reduced"


def assert_close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To float32 rounding after six steps: 1e-4 of the largest weight."""
    gap = max((got[k] - expected[k]).abs().max().item() for k in expected)
    assert gap < 1e-4 * max(w.abs().max().item() for w in expected.values())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_replicated_or_sharded_train_like_one(strategy: str, trainings) -> None:
    assert trainings[strategy][0] is trainings["alone"][0] is None
    assert_close(trainings[strategy][1], trainings["alone"][1])


@pytest.mark.fault(21)
@pytest.mark.parametrize("change", ["ddp, then alone", "alone, then ddp", "fsdp, then alone", "alone, then fsdp"])
def test_another_number_of_processes_goes_on_from_the_same_checkpoint(change: str, trainings) -> None:
    assert trainings[change][0] == 4
    assert_close(trainings[change][1], trainings["alone"][1])

"""AdamW with 8-bit moments: near float32's, resumed bit for bit, sharded, or refused without torchao."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from dora_core.config.execution import Execution
from dora_core.config.method import OptimizationConfig
from dora_core.errors import ConfigError
from dora_core.training.checkpoints import load_checkpoint, save_checkpoint
from dora_core.training.distributed import Sharding, Worker, wrap
from dora_core.training.loop import FolderHooks, fit
from dora_core.training.optimizers import make_optimizer, moment_bytes, require_8bit, set_learning_rate
from tests.dora_core.training.interrupted_runs import sft_task
from tests.ranks import run_ranks

HAS_TORCHAO = importlib.util.find_spec("torchao") is not None
needs_torchao = pytest.mark.skipif(not HAS_TORCHAO, reason="torchao is not installed (extra `quantised`)")
EIGHT = OptimizationConfig(optimizer="adamw_8bit", learning_rate=1e-2)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao compiles its step, which takes minutes for a C++ compiler and changes no bit of what is tested here."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def layers() -> nn.Sequential:
    """Weights of 64 · 128 values, which are quantised, and biases, which are not."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64))


def step(module: nn.Module, optimizer: torch.optim.Optimizer, number: int, rate: float = 1e-2) -> None:
    set_learning_rate(optimizer, rate)
    inputs = torch.randn(8, 64, generator=torch.Generator().manual_seed(number))
    module(inputs).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("config", [OptimizationConfig(), pytest.param(EIGHT, marks=needs_torchao)])
@pytest.mark.usefixtures("eager")
def test_the_rate_is_that_of_the_step(config: OptimizationConfig) -> None:
    """The first step of Adam moves every weight by the rate, whatever its gradient."""
    module = layers()
    before = module[0].weight.detach().clone()
    step(module, make_optimizer(module, config), 0, rate=0.25)
    torch.testing.assert_close((module[0].weight - before).abs().median().item(), 0.25, rtol=1e-3, atol=0.0)


@needs_torchao
@pytest.mark.usefixtures("eager")
def test_eight_bits_follow_float32_in_a_quarter_of_the_memory() -> None:
    mine, exact = layers(), layers()
    optimizer, reference = make_optimizer(mine, EIGHT), make_optimizer(exact, OptimizationConfig(learning_rate=1e-2))
    start = exact[0].weight.detach().clone()
    for number in range(10):
        step(mine, optimizer, number)
        step(exact, reference, number)
    moved, apart = (exact[0].weight - start).norm(), (mine[0].weight - exact[0].weight).norm()
    assert 0 < apart < 0.05 * moved
    weights, biases = 2 * 64 * 128, 64 + 128
    assert moment_bytes(reference) == 8 * (weights + biases)
    assert moment_bytes(optimizer) == 2 * weights + 2 * 4 * weights // 256 + 8 * biases  # codes, scales of 256, float32


@needs_torchao
@pytest.mark.usefixtures("eager")
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    module, again = layers(), layers()
    optimizer, other = make_optimizer(module, EIGHT), make_optimizer(again, EIGHT)
    for number in range(3):
        step(module, optimizer, number)
    save_checkpoint(tmp_path, module, optimizer, {"step": 3}, {}, Worker())
    assert load_checkpoint(tmp_path, again, other, Worker()) == {"step": 3}
    for number in range(3, 6):
        step(module, optimizer, number)
        step(again, other, number)
    assert all(torch.equal(one, two) for one, two in zip(module.parameters(), again.parameters(), strict=True))


def rank_main(worker: Worker, root: str) -> None:
    torch.compile = lambda function, **options: function  # type: ignore[assignment]
    folder = Path(root) / "checkpoint"
    folder.mkdir(exist_ok=True)

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        module = layers()
        sharded = wrap(module, "fsdp", worker, list(module), Sharding(worker))
        return sharded, make_optimizer(sharded, EIGHT)

    module, optimizer = made()
    for number in range(3):
        step(module, optimizer, number)
    save_checkpoint(folder, module, optimizer, {"step": 3}, {}, worker)
    torch.distributed.barrier()
    again, other = made()
    load_checkpoint(folder, again, other, worker)
    for number in range(3, 6):
        step(module, optimizer, number)
        step(again, other, number)
    same = all(torch.equal(one.to_local(), two.to_local()) for one, two in zip(module.parameters(), again.parameters(), strict=True))
    weights = [p.full_tensor() for p in module.parameters()]
    torch.save({"same": same, "weights": weights, "bytes": moment_bytes(optimizer)}, Path(root) / f"{worker.rank}.pt")


@needs_torchao
@pytest.mark.usefixtures("eager")
def test_two_ranks_with_shards_train_as_one_and_resume(tmp_path: Path) -> None:
    """Blocks of 256 values end where the shards of these weights end, so the moments are those of one process."""
    run_ranks(rank_main, str(tmp_path))
    module = layers()
    optimizer = make_optimizer(module, EIGHT)
    for number in range(6):
        step(module, optimizer, number)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["same"] and found["bytes"] * 2 == moment_bytes(optimizer)
        for mine, theirs in zip(module.parameters(), found["weights"], strict=True):
            torch.testing.assert_close(mine.detach(), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(HAS_TORCHAO, reason="torchao is installed")
def test_without_torchao_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"align.optimization.optimizer=adamw_8bit needs torchao") as refused:
        require_8bit(EIGHT, "align.optimization")
    assert "dora-realign[quantised]" in str(refused.value.hint) and "adamw" in str(refused.value.hint)
    with pytest.raises(ConfigError, match="needs torchao"):
        make_optimizer(layers(), EIGHT)
    require_8bit(OptimizationConfig())


@needs_torchao
@pytest.mark.usefixtures("eager")
def test_a_training_resumes_with_its_number_of_ranks_alone(policy, tokenizer, tmp_path: Path) -> None:
    """The loop sets the rate of each step, and its checkpoint names the ranks that wrote it."""
    config = OptimizationConfig(epochs=4, batch_size=3, optimizer="adamw_8bit")
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    weights = []
    for folder, until in (("whole", None), ("half", 4), ("half", None)):
        policy.load_state_dict(start)
        report = fit(
            sft_task(policy, tokenizer), config, Execution(checkpoint_every=4), Worker(), FolderHooks(tmp_path / folder), until=until
        )
        weights.append({name: value.clone() for name, value in policy.state_dict().items()})
    assert report.resumed_from == 4 and all(torch.equal(weights[0][name], weights[2][name]) for name in start)
    policy.load_state_dict(start)
    other = Execution(checkpoint_every=4, strategy="fsdp")
    again = fit(sft_task(policy, tokenizer), config, other, Worker(), FolderHooks(tmp_path / "half"))
    assert again.resumed_from is None and "other ranks" in again.warnings[0]

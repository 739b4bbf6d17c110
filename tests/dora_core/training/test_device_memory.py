"""Memory that is missing where no smaller batch helps: the phase, the arithmetic and the keys; nothing is half done, nothing done twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dora_core.config.method import LoraConfig, OptimizationConfig
from dora_core.errors import TrainingError
from dora_core.models.adapters import add_lora
from dora_core.models.logprobs import ResponseLogps
from dora_core.training import loop as training
from dora_core.training.device_memory import adamw, arithmetic, explain_out_of_memory
from dora_core.training.distributed import Worker
from dora_core.training.loop import FolderHooks, OutOfMemory
from dora_core.training.sft import SftTask
from tests.dora_core.training.interrupted_runs import Run, assert_same

TORCH_SAYS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.25 GiB of which 1.02 GiB is free. "
    "Including non-PyTorch memory, this process has 78.00 GiB memory in use. If reserved but unallocated memory is large try setting "
    "PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


@pytest.fixture
def run(policy, tokenizer) -> Run:
    ResponseLogps(policy)  # decides and remembers how rows are laid out, which is not part of these trainings
    return Run(policy, tokenizer)


def runs_out(*_, **__) -> None:
    raise torch.OutOfMemoryError(TORCH_SAYS)


def test_the_state_is_the_one_that_torch_would_make() -> None:
    """Three steps, one of two layers frozen, one weight without a gradient: the same weights and state to the last bit."""
    torch.manual_seed(0)
    mine = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2, bias=False)])
    mine[1].requires_grad_(False)
    theirs = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2, bias=False)])
    theirs.load_state_dict(mine.state_dict())
    theirs[1].requires_grad_(False)
    config = OptimizationConfig(learning_rate=0.1, weight_decay=0.1)
    ours = adamw(mine, config)
    lazy = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1, fused=True)
    for step in range(3):
        for module, optimizer in ((mine, ours), (theirs, lazy)):
            module[0](torch.arange(3.0) + step).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    state, expected = ours.state_dict()["state"], lazy.state_dict()["state"]
    assert set(state) - set(expected) == {2}, "torch makes none for a weight that never had a gradient"
    for number, values in expected.items():
        assert values.keys() == state[number].keys()
        for name, value in values.items():
            torch.testing.assert_close(state[number][name], value, rtol=0, atol=0)


def test_arithmetic_by_hand() -> None:
    """512 × 1024 float32 weights are 2 MiB, with gradient and two moments 8; a frozen layer is held once; four workers share."""
    module = nn.ModuleList([nn.Linear(1024, 512, bias=False), nn.Linear(1024, 512, bias=False)])
    expected = "A worker needs weights 4.00 MiB + gradients 4.00 MiB + AdamW's moments 8.00 MiB = 16.00 MiB before any batch"
    assert arithmetic(module, 1) == f"{expected} (1,048,576 weights)"
    module[1].requires_grad_(False)
    assert "4.00 MiB + gradients 2.00 MiB + AdamW's moments 4.00 MiB = 10.00 MiB" in arithmetic(module, 1)
    shared = "weights 1.00 MiB + gradients 0.50 MiB + AdamW's moments 1.00 MiB = 2.50 MiB before any batch (1,048,576 weights, shared by 4"
    assert shared in arithmetic(module, 4)
    big = nn.Linear(2**17, 2**16, bias=False, device="meta")
    assert "weights 32.00 GiB + gradients 32.00 GiB + AdamW's moments 64.00 GiB = 128.00 GiB" in arithmetic(big, 1)


@pytest.mark.fault(3)
def test_remedies_are_those_that_are_not_taken_yet(policy) -> None:
    def hint(module: nn.Module, strategy: str, workers: int) -> str:
        with pytest.raises(TrainingError) as error, explain_out_of_memory("it was tested", module, strategy, Worker(world_size=workers)):
            runs_out()
        assert error.value.message.startswith(
            "out of memory while it was tested: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.25 GiB of "
            "which 1.02 GiB is free. A worker needs weights "
        )
        assert not error.value.retryable and not isinstance(error.value, OutOfMemory)
        return error.value.hint

    whole = hint(policy, "ddp", 2)
    assert "strategy fsdp" in whole and "optimization.lora" in whole and "gpus_per_worker" in whole
    assert hint(policy, "fsdp", 2).startswith("set one of: more workers; optimization.lora")
    assert "optimization.lora" not in hint(add_lora(policy, LoraConfig(rank=2), "CAUSAL_LM"), "ddp", 1)


@pytest.mark.fault(3)
def test_a_state_that_does_not_fit_is_missed_before_the_first_step(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-way through its allocation: no weight has changed, and no batch was computed."""
    before = {name: weight.clone() for name, weight in run.policy.state_dict().items()}
    zeros_like, made = torch.zeros_like, []

    def until_it_is_full(like: torch.Tensor, **how) -> torch.Tensor:
        made.append(like)
        return zeros_like(like, **how) if len(made) < 6 else runs_out()

    monkeypatch.setattr(torch, "zeros_like", until_it_is_full)
    monkeypatch.setattr(SftTask, "backward", lambda *_: pytest.fail("a batch was computed"))
    with pytest.raises(TrainingError, match="out of memory while the optimizer's state was allocated: CUDA"):
        run(FolderHooks(tmp_path))
    assert len(made) == 6, "it is not tried again"
    assert all(torch.equal(weight, before[name]) for name, weight in run.policy.state_dict().items())


def half_a_step(optimizer: torch.optim.Optimizer) -> None:
    """Breaks off when it has changed half of the weights."""
    with torch.no_grad():
        for weight in optimizer.param_groups[0]["params"][::2]:
            weight.mul_(0.5)
    runs_out()


@pytest.mark.fault(3)
@pytest.mark.parametrize(
    ("at", "phase", "place", "fail", "resumed"),
    [
        (1, "the model was moved to the device", (nn.Module, "to"), runs_out, None),
        (6, "the gradient of step 5 was measured", (training, "gradient_norm"), runs_out, 4),
        (6, "the weights were changed in step 5", (torch.optim.AdamW, "step"), half_a_step, 4),
        (2, "the checkpoint of step 8 was saved", (training, "save_checkpoint"), runs_out, 4),
    ],
    ids=["moved", "measured", "changed", "saved"],
)
def test_what_no_smaller_batch_mends_ends_training_and_the_next_run_goes_on(
    at: int, phase: str, place: tuple[object, str], fail: Callable, resumed: int | None, run: Run, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The call number ``at`` of a function fails; it is not called again, and training never continues with half-changed weights."""
    whole = run(FolderHooks(tmp_path / "whole"))
    real, calls = getattr(*place), []

    def fails_once(*args, **kwargs):
        calls.append(args)
        return fail(*args[:1]) if len(calls) == at else real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(*place, fails_once)
        with pytest.raises(TrainingError, match=f"out of memory while {phase}: CUDA out of memory") as error:
            run(FolderHooks(tmp_path / "run"))
    assert len(calls) == at and not isinstance(error.value, OutOfMemory)
    run.policy.zero_grad()  # a stage's next attempt loads the model anew
    again = run(FolderHooks(tmp_path / "run"))
    assert again[0].resumed_from == resumed
    assert_same(again, whole)


@pytest.mark.fault(3)
def test_a_checkpoint_that_does_not_fit_is_loaded_by_the_next_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(FolderHooks(tmp_path / "whole"))
    hooks = run.interrupted(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(training, "load_checkpoint", runs_out)
        with pytest.raises(TrainingError, match="out of memory while a checkpoint was loaded: CUDA"):
            run(hooks)
    again = run(hooks)
    assert again[0].resumed_from == 8
    assert_same(again, whole)

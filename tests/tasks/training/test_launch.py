"""Training through faults in one process: a death, an overflow or a torn file costs steps since the last checkpoint, and the weights stay
the same. The same on Ray Train: ``test_ray_backend.py``.

"The same" is to the last bit where every step is cut up as before, and to float32 rounding where another number of workers or smaller
micro-batches cut it up differently: 1e-4 of the largest weight (in float64 it is 1e-9, ``tests/dora_core/training/test_loop.py``).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dora_core.config.judging import RewardTrainingConfig
from dora_core.config.method import OptimizationConfig, SftConfig
from dora_core.errors import TrainingError
from dora_core.training import distributed
from infra.store.store import ERROR, Store, sha256_file
from tasks.runtime.stage import StageSpec, execute, write_spec
from tasks.stages import align, reward, sft
from tests.faults import Recovery
from tests.tasks.conftest import GOLDEN, IN_PROCESS, TEXT, TINY, prepare
from tests.tasks.training.alignments import Start, align_spec, own_store

build_align_task = align.build_task


def model_file(store: Store, spec: StageSpec) -> Path:
    return store.fetch(spec.stage, spec.digest()) / "model" / "model.safetensors"


def assert_close(got: Path, expected: Path) -> None:
    weights, wanted = load_file(got), load_file(expected)
    assert weights.keys() == wanted.keys()
    gap = max((weights[name] - wanted[name]).abs().max().item() for name in wanted)
    assert gap < 1e-4 * max(w.abs().max().item() for w in wanted.values())


def assert_nothing_left(store: Store, spec: StageSpec) -> None:
    """Only the result's own files: no scratch, no half-written checkpoint or model."""
    folder = store.local_root / spec.stage / spec.digest()
    result = store.read_result(spec.stage, spec.digest())
    assert result is not None
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.parent.name != "journal"}
    assert files - {"result.json", "spec.json"} == set(result["files"])


def all_steps(result: dict[str, Any]) -> bool:
    facts = result["facts"]
    return facts["curve"]["step"] == list(range(facts["steps"])) and len(facts["curve"]["loss"]) == facts["steps"]


class Killed(BaseException):
    """Where a process would be killed."""


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch, spec: align.Spec, store: Store) -> None:
    """Train in this process until the end of ``step``."""

    def dies(start, worker, **arguments):
        task = build_align_task(start, worker, **arguments)
        backward = task.backward

        def until(module, micro_batches, at):
            if at == step:
                raise Killed
            return backward(module, micro_batches, at)

        task.backward = until
        return task

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(align, "build_task", dies)
        execute(spec, align.run, store)


@pytest.mark.fault(19)
def test_another_configuration_in_the_same_store_starts_afresh(
    pipeline_start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is interrupted after a checkpoint; the second does every planned step; the first then goes on with its own."""
    store = own_store(pipeline_start, tmp_path)
    execution = IN_PROCESS.model_copy(update={"checkpoint_every": 4})
    first, second = (align_spec(pipeline_start, execution, epochs) for epochs in (2.0, 3.0))
    assert first.digest() != second.digest()
    interrupted_at(6, monkeypatch, first, store)
    other = execute(second, align.run, store)
    assert other["facts"]["resumed_from"] is None and all_steps(other)
    assert other["facts"]["steps"] > 8, "as many as the other configuration plans"
    alone = own_store(pipeline_start, tmp_path / "alone")
    execute(second, align.run, alone)
    assert sha256_file(model_file(store, second)) == sha256_file(model_file(alone, second))
    mine = execute(first, align.run, store)
    assert mine["facts"]["resumed_from"] == 4 and all_steps(mine)


@pytest.mark.fault(19, 23)
def test_a_checkpoint_of_another_configuration_is_refused_by_name(
    pipeline_start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same shapes, another loss, under the digest of this run: only the run's name distinguishes them."""
    store = own_store(pipeline_start, tmp_path)
    execution = IN_PROCESS.model_copy(update={"checkpoint_every": 4})
    mine = align_spec(pipeline_start, execution)
    foreign = mine.model_copy(update={"align": mine.align.model_copy(update={"max_responses": 2})})
    prepare(foreign, store)
    interrupted_at(6, monkeypatch, foreign, store)
    scratch = [store.local_root / "align" / spec.digest() / "scratch" for spec in (foreign, mine)]
    shutil.copytree(scratch[0] / "checkpoints", scratch[1] / "checkpoints")
    result = execute(mine, align.run, store)
    [warning] = result["facts"]["warnings"]
    assert "step-4 was not used: it is of another run: other run" in warning
    assert result["facts"]["resumed_from"] is None and all_steps(result)
    alone = own_store(pipeline_start, tmp_path / "alone")
    execute(mine, align.run, alone)
    assert sha256_file(model_file(store, mine)) == sha256_file(model_file(alone, mine))


def cramped(task, most: int, *, first_step: int = 0, rank: int = 0):
    """As if the accelerator of ``rank`` held the activations of ``most`` tokens, from ``first_step`` on."""
    backward, at = task.backward, [0]

    def noting_the_step(module, micro_batches, step):
        at[0] = step
        return backward(module, micro_batches, step)

    def check(_, args) -> None:
        ids = args[0].ids_S if hasattr(args[0], "ids_S") else args[0].ids_RS
        mine = rank == (torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)
        if mine and at[0] >= first_step and ids.numel() > most:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {ids.numel()} tokens")

    task.backward = noting_the_step
    task.module.register_forward_pre_hook(check)
    return task


def sft_spec(start: Start) -> sft.Spec:
    optimization = OptimizationConfig(epochs=2, batch_size=8, learning_rate=1e-3)
    config = SftConfig(data="best", optimization=optimization)
    return sft.Spec(records=start[1], model=TINY, text=TEXT, sft=config, golden_sources=GOLDEN, start=start[2], execution=IN_PROCESS)


def reward_spec(start: Start) -> reward.Spec:
    training = RewardTrainingConfig(data="all", optimization=OptimizationConfig(epochs=2, batch_size=8, learning_rate=1e-3))
    fields = {"model": TINY, "text": TEXT, "training": training, "golden_sources": GOLDEN, "execution": IN_PROCESS}
    return reward.Spec(records=start[1], start=start[2], **fields)


@pytest.mark.fault(3)
@pytest.mark.parametrize(
    ("stage", "make"),
    [
        pytest.param(align, lambda start: align_spec(start, IN_PROCESS), id="align"),
        pytest.param(sft, sft_spec, id="sft", marks=pytest.mark.chaos),
        pytest.param(reward, reward_spec, id="reward", marks=pytest.mark.chaos),
    ],
)
def test_out_of_memory_goes_on_with_smaller_micro_batches(
    stage: ModuleType, make: Callable[[Start], Any], pipeline_start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage that trains: recorded, bounded, the same weights."""
    spec, build = make(pipeline_start), stage.build_task
    whole, small = own_store(pipeline_start, tmp_path / "whole"), own_store(pipeline_start, tmp_path / "small")
    expected = execute(spec, stage.run, whole)
    tokens: list[int] = []

    def build_cramped(start, worker, **arguments):
        task = build(start, worker, **arguments)
        tokens[:] = sorted(int(t) for t in task.tokens)
        return cramped(task, 2 * tokens[-1], first_step=3)

    monkeypatch.setattr(stage, "build_task", build_cramped)
    result = execute(spec, stage.run, small)
    noted = [w for w in result["facts"]["warnings"] if "out of memory at step 3" in w]
    assert 1 <= len(noted) <= 4, "eight records at first, two at last"
    assert all(f"set execution.{spec.stage}.micro_batch_tokens to " in warning for warning in noted)
    assert expected["facts"]["warnings"] == [w for w in result["facts"]["warnings"] if w not in noted]
    assert all_steps(result)
    assert_close(model_file(small, spec), model_file(whole, spec))
    assert_nothing_left(small, spec)


@pytest.mark.fault(3)
def test_memory_for_not_even_one_record_is_an_error_with_remedies(
    pipeline_start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, spec = own_store(pipeline_start, tmp_path), align_spec(pipeline_start, IN_PROCESS)
    monkeypatch.setattr(align, "build_task", lambda *args, **kwargs: cramped(build_align_task(*args, **kwargs), 0))
    with pytest.raises(TrainingError, match="out of memory at step 0, with a micro-batch of 1 records"):
        execute(spec, align.run, store)
    error = store.read_json(f"align/{spec.digest()}/{ERROR}")
    assert "gradient_checkpointing" in error["hint"] and not error["retryable"]


@pytest.mark.fault(3)
def test_memory_for_not_even_the_trained_weights_ends_the_stage_and_the_next_run_goes_on(
    pipeline_start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the phases outside of a batch, the last; the others: ``tests/dora_core/training/test_device_memory.py``."""
    spec = align_spec(pipeline_start, IN_PROCESS.model_copy(update={"checkpoint_every": 4}))
    store, whole = own_store(pipeline_start, tmp_path), own_store(pipeline_start, tmp_path / "whole")
    execute(spec, align.run, whole)
    attempts: list[torch.nn.Module] = []

    def runs_out(module: torch.nn.Module) -> None:
        attempts.append(module)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.02 GiB free.")

    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="out of memory while the trained weights were gathered: CUDA"):
        patch.setattr(distributed, "full_weights", runs_out)
        execute(spec, align.run, store)
    assert len(attempts) == 1
    error = store.read_json(f"align/{spec.digest()}/{ERROR}")
    assert "A worker needs weights" in error["message"] and "optimization.lora" in error["hint"] and not error["retryable"]
    result = execute(spec, align.run, store)
    assert result["facts"]["resumed_from"] == (result["facts"]["steps"] - 1) // 4 * 4
    assert sha256_file(model_file(store, spec)) == sha256_file(model_file(whole, spec))
    assert_nothing_left(store, spec)


FAILPOINT = """
import os, signal, sys
from pathlib import Path

from torch.distributed.checkpoint import FileSystemWriter
from transformers import PreTrainedModel

from tasks.runtime.stage import main
from tasks.stages import align

finish, save = FileSystemWriter.finish, PreTrainedModel.save_pretrained
place = sys.argv.pop(1)


def at_a_checkpoint(self, metadata, results):
    if place == "checkpoint" and Path(self.path).name == "step-8":
        os.kill(os.getpid(), signal.SIGKILL)
    finish(self, metadata, results)


def at_the_model(self, folder, **arguments):
    save(self, folder, **arguments)
    if place == "model":
        weights = Path(folder) / "model.safetensors"
        os.truncate(weights, weights.stat().st_size // 2)
        weights.rename(weights.with_name("half-written"))
        os.kill(os.getpid(), signal.SIGKILL)


FileSystemWriter.finish, PreTrainedModel.save_pretrained = at_a_checkpoint, at_the_model
main({"align": (align.Spec, align.run)})
"""


@pytest.mark.component
@pytest.mark.chaos
@pytest.mark.fault(5)
def test_a_process_killed_while_it_writes_a_checkpoint_and_then_the_model(
    pipeline_start: Start, tmp_path: Path, recovery: Recovery
) -> None:
    """kill −9 of the stage's own process after a checkpoint's first file, then after half of the model; the third run finishes."""
    spec = align_spec(pipeline_start, IN_PROCESS.model_copy(update={"checkpoint_every": 4}))
    whole, killed = own_store(pipeline_start, tmp_path / "whole"), own_store(pipeline_start, tmp_path / "killed")
    execute(spec, align.run, whole)
    folder, script = killed.local_root / "align" / spec.digest(), tmp_path / "failpoint.py"
    script.write_text(FAILPOINT)

    def attempt(place: str) -> int:
        command = [sys.executable, str(script), place, "align", "--spec", write_spec(spec, killed)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
        return subprocess.run(command, env=environment, capture_output=True, timeout=300).returncode

    assert attempt("checkpoint") == -signal.SIGKILL
    recovery.begins()
    torn = folder / "scratch" / "checkpoints" / "step-8"
    assert [p.name for p in torn.iterdir()] == ["__0_0.distcp"]
    assert attempt("model") == -signal.SIGKILL
    assert (folder / "model" / "half-written").exists() and killed.read_result("align", spec.digest()) is None
    result = execute(spec, align.run, killed)
    recovery.ends()
    last = (result["facts"]["steps"] - 1) // 4 * 4
    assert result["facts"]["resumed_from"] == last, "only the steps since the last checkpoint are done again"
    assert all_steps(result) and result["facts"]["warnings"] == []
    assert sha256_file(model_file(killed, spec)) == sha256_file(model_file(whole, spec))
    assert_nothing_left(killed, spec)

"""The training loop: data order, learning rate, gradient scale and clipping, checkpoints, resume.

The gradient of a step comes from a :class:`Task` (``alignment.py``, ``sft.py``, ``reward_model.py``); this file never looks at a loss. A
run that is killed and started again ends with the same weights as one that was not: the data order is a function of (seed, epoch), the
learning rate of the step, and the optimiser's state is restored exactly. A checkpoint that is damaged or of another run is ignored and
named in the report: an older one, or the start, gives the same weights later.

Left out: evaluation during training (the evaluate stage evaluates the saved model once) and early stopping.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dora_core.config.execution import Execution
from dora_core.config.method import OptimizationConfig
from dora_core.errors import TrainingError
from dora_core.training.checkpoints import PROGRESS, flaw, identity, load_checkpoint, save_checkpoint
from dora_core.training.device_memory import explain_out_of_memory
from dora_core.training.distributed import Sharding, Worker, gradient_norm, scale_gradients, wrap
from dora_core.training.microbatches import split_step
from dora_core.training.optimizers import make_optimizer, set_learning_rate

log = logging.getLogger("dora.training")


class Task(Protocol):
    """Training task: a module and the gradient of one optimisation step."""

    @property
    def module(self) -> nn.Module:
        """The trainable module, not yet wrapped for distribution."""

    @property
    def layers(self) -> list[nn.Module]:
        """Its repeated blocks, the units of sharding."""

    @property
    def tokens(self) -> Sequence[int] | NDArray[np.integer]:
        """Cost of each training record: the tokens that pass through the model for it."""

    @property
    def exact(self) -> bool:
        """A step's gradient is the same however its records are cut into micro-batches."""

    def backward(self, module: nn.Module, micro_batches: list[list[int]], step: int) -> tuple[float, dict[str, float]]:
        """Leave the step's gradient in ``.grad`` up to a factor; return that factor and the step's metrics.

        ``micro_batches`` holds this rank's record indices; an empty micro-batch must still run forward and backward
        (with weight 0), because the other ranks are waiting in a collective.
        """

    def state(self) -> dict[str, Any]:
        """JSON-able state that the next step depends on besides weights and optimiser; saved with every checkpoint."""

    def restore(self, state: dict[str, Any]) -> None: ...


class Hooks(Protocol):
    """Callbacks of a training run: checkpoint folders, metrics, progress. ``log`` and ``progress`` are called on rank 0 only,
    ``leaves`` on every rank after every step but the last: whether the machine of a rank is about to be taken away, so that a checkpoint
    is written now; it returns the same on every rank.

    ``checkpoints`` are folders, newest first; one need only exist until the next is asked for.
    """

    def checkpoints(self) -> Iterable[Path]: ...
    def save(self, folder_writer: Callable[[Path], None], step: int) -> None: ...
    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def progress(self, done: int, total: int) -> None: ...
    def leaves(self, done: int) -> bool: ...


class FolderHooks:
    """Hooks for one process and a local folder: checkpoints in ``<folder>/step-<n>``, the two newest kept; metrics and progress are
    discarded."""

    def __init__(self, folder: Path):
        self.folder = folder

    def checkpoints(self) -> list[Path]:
        """Finished checkpoints, last written first: one of another run may have any number of steps."""
        last = [file.parent for file in self.folder.glob(f"step-*/{PROGRESS}")]
        return sorted(last, key=_written, reverse=True)

    def save(self, folder_writer: Callable[[Path], None], step: int) -> None:
        target = self.folder / f"step-{step}"
        shutil.rmtree(target, ignore_errors=True)  # a run that was killed here, perhaps with more ranks, left files
        target.mkdir(parents=True, exist_ok=True)
        before = max(map(_written, self.checkpoints()), default=0)
        folder_writer(target)
        if 0 < _written(target) <= before:  # the clock was set back: the order would be another
            os.utime(target / PROGRESS, ns=(before + 1, before + 1))
        kept = {target, *[folder for folder in self.checkpoints() if folder != target][:1]}
        for old in set(self.folder.glob("step-*")) - kept:
            shutil.rmtree(old, ignore_errors=True)

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def progress(self, done: int, total: int) -> None: ...

    def leaves(self, done: int) -> bool:
        return False


def _written(checkpoint: Path) -> int:
    """Time at which a checkpoint was finished, in ns; 0 where it is not, or not yet: of several ranks with one folder the first does it."""
    try:
        return (checkpoint / PROGRESS).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@dataclass(frozen=True)
class FitReport:
    """``curve`` maps a metric name to its value at each step; ``steps`` counts all optimisation steps so far, resumed ones too;
    ``warnings`` name the checkpoints that were not used, with the reason."""

    steps: int
    resumed_from: int | None
    curve: dict[str, list[float]]
    warnings: list[str]


class OutOfMemory(TrainingError):
    """Out of accelerator memory with a micro-batch of several records; the same run fits with smaller ones.

    Attributes:
        budget: ``micro_batch_tokens`` for the retry, half of the largest micro-batch's tokens.
    """

    budget: int


@dataclass(frozen=True)
class Schedule:
    """Data order and learning rate as functions of the step alone."""

    records: int
    config: OptimizationConfig

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.records / self.config.batch_size)

    @property
    def steps(self) -> int:
        planned = max(1, round(self.config.epochs * self.steps_per_epoch))
        return min(planned, self.config.max_steps or planned)

    def indices(self, step: int) -> list[int]:
        """Record indices of one optimisation step over all ranks; the last batch of an epoch may be smaller."""
        epoch, position = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(self.records, generator=generator)
        return order[position * self.config.batch_size : (position + 1) * self.config.batch_size].tolist()

    def learning_rate(self, step: int) -> float:
        warmup = math.ceil(self.config.warmup_fraction * self.steps)
        if step < warmup:
            return self.config.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        decay = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
        return self.config.learning_rate * decay[self.config.schedule]


def fit(
    task: Task, config: OptimizationConfig, execution: Execution, worker: Worker, hooks: Hooks, *, run: str = "", until: int | None = None
) -> FitReport:
    """Train ``task.module`` in place, from the newest checkpoint that is whole and of this run, if there is one.

    Args:
        run: identifies everything that decides the weights besides ``config``; a checkpoint of another run is not used.
        until: pause after this many steps of the schedule, with a checkpoint from which the next call goes on; None: train to the end.

    Raises:
        OutOfMemory: retry with its ``budget`` as ``micro_batch_tokens``; module and optimiser must be made anew.
        TrainingError: one record or the model itself does not fit into memory; a gradient is not finite; there are no records.
        StoreError: a checkpoint holds pickled data that could run code.
    """
    if len(task.tokens) == 0:
        raise TrainingError("there are no training records", hint="look at the ingest stage: every record was dropped or quarantined")
    schedule = Schedule(len(task.tokens), config)
    stop = schedule.steps if until is None else min(until, schedule.steps)
    bfloat16 = config.precision == "bfloat16"
    run_identity = identity(task.module, run, len(task.tokens), config)
    if worker.tensor_parallel > 1:
        run_identity["tensor_parallel"] = worker.tensor_parallel  # the optimiser's groups are other ones
    if config.optimizer != "adamw":
        run_identity["ranks"] = f"{worker.world_size} with {execution.strategy}"  # blocks of its moments are cut by the rank's part
    data = worker.data
    explained = partial(explain_out_of_memory, module=task.module, strategy=execution.strategy, worker=worker)
    with explained("the model was moved to the device"):
        sharding = Sharding(worker, bfloat16, execution.replicas, execution.cpu_offload)
        module = wrap(task.module, execution.strategy, worker, task.layers, sharding)
    with explained("the optimizer's state was allocated"):
        optimizer = make_optimizer(module, config)
    module.train()

    progress = _resume(task, module, optimizer, hooks, run_identity, worker, explained)
    curve, warnings = progress.curve, progress.warnings
    autocast = torch.autocast(worker.device.type, torch.bfloat16) if bfloat16 and execution.strategy == "ddp" else contextlib.nullcontext()
    for step in range(progress.step, stop):
        clock = time.monotonic()
        set_learning_rate(optimizer, schedule.learning_rate(step))
        indices = schedule.indices(step)
        parts = split_step(
            [int(task.tokens[i]) for i in indices], data.world_size, execution.micro_batch_tokens, execution.micro_batch_size
        )
        micro_batches = [[indices[i] for i in part] for part in parts[data.rank]]
        # Adapters may have dropout: masks follow from the step, so a resumed run draws those of one that was not interrupted.
        torch.manual_seed(((config.seed * 1_000_003 + step) * data.world_size + data.rank) % 2**63)
        with autocast:
            scale, metrics = _backward(task, module, micro_batches, step)
        with explained(f"the gradient of step {step} was measured"):
            norm = gradient_norm(module) * abs(scale)
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient is not finite at step {step} (objective {metrics.get('objective', metrics.get('loss'))})",
                hint="lower optimization.learning_rate or raise objective.lambda; with bfloat16 try precision float32",
            )
        clip = 1.0 if config.max_grad_norm is None else min(1.0, config.max_grad_norm / (norm + 1e-12))
        with explained(f"the weights were changed in step {step}"):
            scale_gradients(module, scale * clip)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        metrics |= {"grad_norm": norm, "learning_rate": schedule.learning_rate(step)}
        seconds = time.monotonic() - clock
        metrics["tokens_per_second"] = metrics.pop("tokens", 0.0) / seconds
        for name, number in metrics.items():
            curve.setdefault(name, []).append(number)
        done = step + 1
        if worker.rank == 0:
            hooks.log(step, metrics)
            hooks.progress(done, schedule.steps)
        if done < schedule.steps and (hooks.leaves(done) or done % execution.checkpoint_every == 0 or done == stop):
            state = {"step": done, "curve": curve, "warnings": warnings, "task": task.state()}
            with explained(f"the checkpoint of step {done} was saved"):
                write = partial(
                    save_checkpoint, module=module, optimizer=optimizer, progress=state, run_identity=run_identity, worker=worker
                )
                hooks.save(write, done)
    return FitReport(stop, progress.resumed_from, curve, warnings)


@dataclass(frozen=True)
class _Progress:
    """Where a run begins: its first step, and what its earlier steps reported."""

    step: int
    resumed_from: int | None
    curve: dict[str, list[float]]
    warnings: list[str]


def _resume(
    task: Task,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    hooks: Hooks,
    run_identity: dict[str, Any],
    worker: Worker,
    explained: Callable[[str], AbstractContextManager[None]],
) -> _Progress:
    """Load the newest checkpoint that is whole and of this run; the start without one."""
    warnings: list[str] = []
    for checkpoint in hooks.checkpoints():
        if reason := flaw(checkpoint, run_identity, worker):
            warnings.append(f"checkpoint {checkpoint} was not used: {reason}; training went on from an older one or from the start")
            log.warning(warnings[-1])
            continue
        with explained("a checkpoint was loaded"):
            saved = load_checkpoint(checkpoint, module, optimizer, worker)
        task.restore(saved["task"])
        return _Progress(saved["step"], saved["step"], saved["curve"], saved["warnings"] + warnings)
    return _Progress(0, None, {}, warnings)


def _backward(task: Task, module: nn.Module, micro_batches: list[list[int]], step: int) -> tuple[float, dict[str, float]]:
    """:meth:`Task.backward`, with the remedy where memory is short."""
    try:
        return task.backward(module, micro_batches, step)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(task, micro_batches, step) from error


def _out_of_memory(task: Task, micro_batches: list[list[int]], step: int) -> TrainingError:
    """The error with its remedy. The failed micro-batch is not known: the largest needs the most memory."""
    largest = max(micro_batches, key=lambda records: sum(int(task.tokens[i]) for i in records))
    tokens = sum(int(task.tokens[i]) for i in largest)
    message = f"out of memory at step {step}, with a micro-batch of {len(largest)} records, {tokens} tokens"
    if len(largest) <= 1:
        return TrainingError(
            message,
            hint="set execution's gradient_checkpointing, or strategy fsdp with more workers; train adapters (optimization.lora); "
            "or lower text.max_prompt_tokens, text.max_response_tokens or align.max_responses",
        )
    if not task.exact:
        return TrainingError(
            message,
            hint=f"with objective.scope global the result does not depend on micro-batches; here it does: lower execution's "
            f"micro_batch_tokens to {tokens // 2} yourself",
        )
    error = OutOfMemory(message, hint=f"set execution's micro_batch_tokens to {tokens // 2}: the result is the same")
    error.budget = tokens // 2
    return error

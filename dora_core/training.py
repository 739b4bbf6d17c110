"""The training loop: data order, learning rate, gradient scale and clipping, checkpoints, resume.

What a step computes is a :class:`Task` (``dora_core/alignment.py``, ``dora_core/sft.py``); this file never looks at a loss. A run
that is killed and started again ends with the same weights as one that was not: the data order is a function of (seed,
epoch), the learning rate of the step, and the optimiser's state is restored exactly.

Left out: evaluation during training (the evaluate stage does it once, on what was saved) and early stopping.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dora_core.config import Execution, OptimizationConfig
from dora_core.distributed import (
    Worker,
    gradient_norm,
    load_checkpoint,
    save_checkpoint,
    scale_gradients,
    wrap,
)
from dora_core.errors import TrainingError
from dora_core.microbatches import split_step


class Task(Protocol):
    """What is trained: a module and the gradient of one optimisation step.

    Attributes:
        module: the trainable module, not yet wrapped for distribution.
        layers: its repeated blocks, the units of sharding.
        tokens: what each training record costs: the tokens that pass through the model for it.
    """

    module: nn.Module
    layers: list[nn.Module]
    tokens: Sequence[int] | NDArray[np.integer]

    def backward(self, module: nn.Module, micro_batches: list[list[int]], step: int) -> tuple[float, dict[str, float]]:
        """Leave the step's gradient in ``.grad`` up to a factor; return that factor and the step's metrics.

        ``micro_batches`` holds this rank's record indices; an empty micro-batch must still run forward and backward
        (with weight 0), because the other ranks are waiting in a collective.
        """

    def state(self) -> dict[str, Any]:
        """JSON-able state that the next step depends on besides weights and optimiser; saved with every checkpoint."""

    def restore(self, state: dict[str, Any]) -> None: ...


class Hooks(Protocol):
    """What surrounds training: where checkpoints live and who listens. ``log`` and ``progress`` are called on rank 0 only."""

    def latest(self) -> Path | None: ...
    def save(self, folder_writer: Any, step: int) -> None: ...
    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def progress(self, done: int, total: int) -> None: ...


class FolderHooks:
    """Hooks for one process and a local folder: checkpoints in ``<folder>/step-<n>``, the two newest kept, nobody listens."""

    def __init__(self, folder: Path):
        self.folder = folder

    def latest(self) -> Path | None:
        steps = sorted(self.folder.glob("step-*/progress.json"), key=lambda p: int(p.parent.name.removeprefix("step-")))
        return steps[-1].parent if steps else None

    def save(self, folder_writer: Any, step: int) -> None:
        import shutil

        target = self.folder / f"step-{step}"
        target.mkdir(parents=True, exist_ok=True)
        folder_writer(target)
        for old in sorted(self.folder.glob("step-*"), key=lambda p: int(p.name.removeprefix("step-")))[:-2]:
            shutil.rmtree(old)

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def progress(self, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class FitReport:
    """``curve`` maps a metric name to its value at each step; ``steps`` counts all optimisation steps, resumed ones too."""

    steps: int
    resumed_from: int | None
    curve: dict[str, list[float]]


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
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order = torch.randperm(self.records, generator=generator)
        return order[position * self.config.batch_size : (position + 1) * self.config.batch_size].tolist()

    def learning_rate(self, step: int) -> float:
        warmup = math.ceil(self.config.warmup_fraction * self.steps)
        if step < warmup:
            return self.config.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        decay = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
        return self.config.learning_rate * decay[self.config.schedule]


def fit(task: Task, config: OptimizationConfig, execution: Execution, worker: Worker, hooks: Hooks) -> FitReport:
    """Train ``task.module`` in place, from the newest checkpoint if there is one.

    Raises:
        TrainingError: a gradient that is not finite, or nothing to train on.
    """
    if len(task.tokens) == 0:
        raise TrainingError("there are no training records", hint="look at the ingest stage: every record was dropped or quarantined")
    schedule = Schedule(len(task.tokens), config)
    bfloat16 = config.precision == "bfloat16"
    module = wrap(task.module.to(worker.device), execution.strategy, worker, task.layers, bfloat16=bfloat16)
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    module.train()

    start, curve = 0, {}
    checkpoint = hooks.latest()
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, module, optimizer, worker)
        start, curve = progress["step"], progress["curve"]
        task.restore(progress["task"])

    autocast = torch.autocast(worker.device.type, torch.bfloat16) if bfloat16 and execution.strategy == "ddp" else contextlib.nullcontext()
    for step in range(start, schedule.steps):
        clock = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step)
        indices = schedule.indices(step)
        parts = split_step(
            [int(task.tokens[i]) for i in indices], worker.world_size, execution.micro_batch_tokens, execution.micro_batch_size
        )
        with autocast:
            scale, metrics = task.backward(module, [[indices[i] for i in part] for part in parts[worker.rank]], step)
        norm = gradient_norm(module) * abs(scale)
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient is not finite at step {step} (objective {metrics.get('objective', metrics.get('loss'))})",
                hint="lower optimization.learning_rate or raise objective.lambda; with bfloat16 try precision float32",
            )
        clip = 1.0 if config.max_grad_norm is None else min(1.0, config.max_grad_norm / (norm + 1e-12))
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
        if done % execution.checkpoint_every == 0 and done < schedule.steps:
            state = {"step": done, "curve": curve, "task": task.state()}
            hooks.save(lambda folder, state=state: save_checkpoint(folder, module, optimizer, state, worker), done)

    if schedule.steps <= start and checkpoint is None:
        raise TrainingError("training was planned with 0 steps", hint="raise optimization.epochs or max_steps")
    return FitReport(steps=schedule.steps, resumed_from=start if checkpoint is not None else None, curve=curve)

"""Refusal of trainings that this machine's memory cannot hold, before anything runs.

Only what is known is refused: a policy in a local folder, whose size its files say, on a Ray of this machine. Terms that every batch needs
(weights, gradients, optimiser state) count, activations do not: smaller micro-batches are tried by themselves.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dora_core.config.method import OptimizationConfig
from dora_core.errors import ConfigError
from dora_core.training.memory_estimate import ModelSize, TrainingMemory, training_memory
from flows.config.models import RealignConfig
from infra.settings import Settings

GIB = 2**30


def policy_size(config: RealignConfig) -> ModelSize | None:
    """Size of a policy in a local folder; None for others, whose files are not here."""
    return None if config.policy.is_tiny else ModelSize.of_folder(Path(config.policy.source).expanduser())


def trainings(config: RealignConfig) -> dict[str, OptimizationConfig]:
    """Settings of the stages that train the policy, by stage."""
    return {"align": config.align.optimization} | ({"sft": config.sft.optimization} if config.sft.enabled else {})


def refuse_too_large(config: RealignConfig, running: Collection[str], machine: float | None = None) -> None:
    """Refuse alignment and supervised start whose workers hold more than this machine's memory.

    Args:
        running: stages that are not cached.
        machine: its memory in bytes; None: looked up, and nothing is refused where Ray runs elsewhere.

    Raises:
        ConfigError: the stage, the arithmetic, and the settings that lower it.
    """
    if (size := policy_size(config)) is None:
        return
    if machine is None:
        if Settings().ray_address is not None:
            return
        import psutil

        machine = psutil.virtual_memory().total
    for stage, optimization in trainings(config).items():
        if stage not in running:
            continue
        execution = config.execution.of(stage)
        memory, workers = training_memory(size, optimization, execution), max(1, execution.workers)
        needed = workers * (memory.host + (0.0 if execution.gpus_per_worker else memory.held))
        if needed > machine:
            raise ConfigError(
                f"{stage} of {size.parameters / 1e9:.1f} billion parameters needs {needed / GIB:,.0f} GiB of host memory on this machine, "
                f"which has {machine / GIB:,.0f}: {_arithmetic(memory, workers, on_gpu=execution.gpus_per_worker > 0)}",
                hint=f"set execution.{stage}: strategy fsdp (workers share weights, gradients and optimizer state), "
                f"{stage}.optimization.lora (adapters alone are trained), GPUs (gpus_per_worker), or a smaller policy.source",
            )


def _arithmetic(memory: TrainingMemory, workers: int, *, on_gpu: bool) -> str:
    if on_gpu:
        return f"{workers} workers of {memory.host / GIB:,.1f} GiB that are kept off their GPUs"
    parts = f"weights {memory.weights / GIB:,.1f} + gradients {memory.gradients / GIB:,.1f} + AdamW's moments {memory.optimizer / GIB:,.1f}"
    return f"{workers} workers of {parts} GiB, before any batch"

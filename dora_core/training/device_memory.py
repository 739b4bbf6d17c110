"""Device memory that training needs for any batch: weights, gradients, the optimiser's state; and the error where it does not suffice.

Nothing is retried here. Smaller batches make no weight smaller, and before torch raises, its allocator has released its cached blocks
and retried once. Nor is an optimiser's step retried: an interrupted one may have changed some weights. :func:`adamw` makes that rare,
because its state is allocated before the first step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from dora_core.config.method import OptimizationConfig
from dora_core.errors import TrainingError
from dora_core.training.distributed import Worker, by_mesh


def adamw(module: nn.Module, config: OptimizationConfig) -> torch.optim.AdamW:
    """AdamW over the trainable weights of ``module``, with the state that torch would make in the first step.

    So a state that does not fit fails before a weight has changed, and the first micro-batches find as much free memory as all later ones.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [{"params": group} for group in by_mesh(trained)]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    for p in trained:
        step = torch.zeros((), dtype=torch.float32, device=p.device)
        optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


@contextlib.contextmanager
def explain_out_of_memory(phase: str, module: nn.Module, strategy: str, worker: Worker) -> Iterator[None]:
    """Wrap work that holds no activations; ``phase`` describes it: "the model was moved to the device".

    Raises:
        TrainingError: out of memory: the phase, the device's memory, the memory a worker needs, and the keys to set.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        shards = worker.world_size if strategy == "fsdp" else 1  # of weights, gradients and state: ddp gives each worker its own
        room = ". ".join(str(error).split(". ")[:3]).rstrip(".")  # the rest is advice for programmers
        remedies = ["more workers" if shards > 1 else "execution's strategy fsdp with several workers (they share what each holds now)"]
        if all(p.requires_grad for p in module.parameters()):
            remedies.append("optimization.lora (adapters alone are trained)")
        remedies += ["gpus_per_worker 1 (workers with less share a device)", "a smaller model.source"]
        raise TrainingError(
            f"out of memory while {phase}: {room}. {arithmetic(module, shards)}",
            hint=f"set one of: {'; '.join(remedies)}. Smaller micro-batches, gradient_checkpointing and precision bfloat16 (its master "
            "weights are float32) change nothing here",
        ) from error


def arithmetic(module: nn.Module, shards: int) -> str:
    """Memory of a worker besides activations: weights, and for each trained one a gradient and AdamW's two moments."""
    held = sum(p.numel() * p.element_size() for p in module.parameters()) / shards
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad) / shards
    total = held + 3 * trained
    parts = f"weights {_size(held)} + gradients {_size(trained)} + AdamW's moments {_size(2 * trained)} = {_size(total)}"
    count = f"{sum(p.numel() for p in module.parameters()):,} weights"
    return f"A worker needs {parts} before any batch ({count}{f', shared by {shards} workers' if shards > 1 else ''})"


def _size(count: float) -> str:
    """GiB, as torch's own messages; smaller ones in MiB."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.2f} MiB"

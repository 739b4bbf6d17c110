"""One process among many: wrapping a module for DDP or FSDP2, synchronising gradients when told to, and checkpoints.

The same code runs in one process without ``torch.distributed``, which is what tests and notebooks use.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

from dora_core.checkpoint_reading import load_safely


@dataclass(frozen=True)
class Worker:
    """This process: rank in [0, world_size), its device, and the process group (``None`` alone)."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None

    @classmethod
    def current(cls, device: torch.device | None = None) -> Worker:
        """From an initialised default process group, or the single-process worker."""
        device = device or torch.device("cpu")
        if not dist.is_initialized():
            return cls(device=device)
        return cls(dist.get_rank(), dist.get_world_size(), device, dist.group.WORLD)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, in float64."""
        total = values.double().to(self.device if self._is_nccl else "cpu")
        if self.group is not None:
            dist.all_reduce(total, group=self.group)
        return total.cpu()

    @property
    def _is_nccl(self) -> bool:
        return self.group is not None and dist.get_backend(self.group) == "nccl"


def wrap(module: nn.Module, strategy: str, worker: Worker, layers: list[nn.Module], *, bfloat16: bool = False) -> nn.Module:
    """``module`` as it is (alone), under DDP, or sharded by FSDP2 (each of ``layers``, then the root).

    ``bfloat16`` only matters for FSDP, which then computes in bfloat16 and reduces gradients in float32.
    """
    if worker.group is None:
        return module
    if strategy == "ddp":
        ids = [worker.device.index] if worker.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bfloat16 else MixedPrecisionPolicy()
    for part in (*layers, module):
        fully_shard(part, mp_policy=policy)
    return module


@contextlib.contextmanager
def gradient_sync(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Forward and backward inside reduce gradients over ranks only if ``enabled``. FSDP modules always reduce."""
    with contextlib.nullcontext() if enabled or not isinstance(module, DistributedDataParallel) else module.no_sync():
        yield


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def scale_gradients(module: nn.Module, factor: float) -> None:
    """Multiply accumulated gradients in place; nothing to do, and no memory traffic, for a factor of 1."""
    grads = gradients(module)
    if factor != 1.0 and grads:
        torch._foreach_mul_(grads, factor)


def gradient_norm(module: nn.Module) -> float:
    """Global 2-norm over all parameters and shards."""
    norm = torch.nn.utils.get_total_norm(gradients(module))
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def save_checkpoint(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any], worker: Worker) -> None:
    """Weights and optimiser state (sharded, one file per rank) plus ``progress.json``; call on every rank."""
    weights, moments = get_state_dict(module, optimizer)
    dcp.save({"weights": weights, "optimizer": moments}, checkpoint_id=str(folder), no_dist=worker.group is None)
    if worker.rank == 0:
        (folder / "progress.json").write_text(json.dumps(progress))


def load_checkpoint(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, worker: Worker) -> dict[str, Any]:
    """Restore what :func:`save_checkpoint` wrote, bit for bit; the number of ranks may differ. Returns ``progress``.

    Raises:
        StoreError: it holds what could run code.
    """
    weights, moments = get_state_dict(module, optimizer)
    state = {"weights": weights, "optimizer": moments}
    load_safely(state, folder, alone=worker.group is None)
    set_state_dict(module, optimizer, model_state_dict=state["weights"], optim_state_dict=state["optimizer"])
    return json.loads((folder / "progress.json").read_text())


def full_weights(module: nn.Module) -> dict[str, Tensor]:
    """All weights on the CPU of rank 0, names without wrapper prefixes; empty on other ranks. Call on every rank."""
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

"""One worker of distributed training: wrapping a module for DDP or FSDP2, synchronising and measuring gradients.

The same code runs in one process without ``torch.distributed``, as in tests and notebooks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


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

    def gather(self, value: T) -> list[T]:
        """The (picklable) values of all ranks, by rank, on every rank."""
        if self.group is None:
            return [value]
        everyone: list[T] = [value] * self.world_size
        dist.all_gather_object(everyone, value, group=self.group)
        return everyone

    @property
    def _is_nccl(self) -> bool:
        return self.group is not None and dist.get_backend(self.group) == "nccl"


def wrap(module: nn.Module, strategy: str, worker: Worker, layers: list[nn.Module], *, bfloat16: bool = False) -> nn.Module:
    """``module`` on the worker's device: as it is (alone), under DDP, or sharded by FSDP2 (each of ``layers``, then the root).

    ``bfloat16`` only matters for FSDP, which then computes in bfloat16 and reduces gradients in float32.
    """
    if worker.group is None:
        return module.to(worker.device)
    if strategy == "ddp":
        ids = [worker.device.index] if worker.device.type == "cuda" else None
        return DistributedDataParallel(module.to(worker.device), device_ids=ids, gradient_as_bucket_view=True)
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bfloat16 else MixedPrecisionPolicy()
    for part in (*layers, module):  # moves a part at a time to the device: the whole model never has to fit there
        fully_shard(part, mp_policy=policy)
    return module


@contextlib.contextmanager
def gradient_sync(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Reduce gradients over ranks in the forward and backward passes inside only if ``enabled``. FSDP modules always reduce."""
    with contextlib.nullcontext() if enabled or not isinstance(module, DistributedDataParallel) else module.no_sync():
        yield


def gradients(module: nn.Module) -> list[Tensor]:
    """Gradients of the parameters that have one."""
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


def full_weights(module: nn.Module) -> dict[str, Tensor]:
    """All weights on the CPU of rank 0, names without wrapper prefixes; empty on other ranks. Call on every rank."""
    return cast("dict[str, Tensor]", get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True)))

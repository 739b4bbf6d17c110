"""One worker of distributed training: wrapping a module for DDP or FSDP2, synchronising and measuring gradients.

The same code runs in one process without ``torch.distributed``, as in tests and notebooks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dora_core.errors import TrainingError

T = TypeVar("T")
P = TypeVar("P", bound=Tensor)


@dataclass(frozen=True)
class Worker:
    """This process: rank in [0, world_size), its device, and the process group (``None`` alone).

    Attributes:
        tensor_mesh: (shards, tensor group), where neighbours split each layer among them (``models/tensor_plan.py``).
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None
    tensor_mesh: DeviceMesh | None = None

    @classmethod
    def current(cls, device: torch.device | None = None) -> Worker:
        """From an initialised default process group, or the single-process worker."""
        device = device or torch.device("cpu")
        if not dist.is_initialized():
            return cls(device=device)
        return cls(dist.get_rank(), dist.get_world_size(), device, dist.group.WORLD)

    def split(self, tensor_parallel: int) -> Worker:
        """The same worker, in groups of ``tensor_parallel`` neighbours. Call on every rank."""
        if tensor_parallel == 1:
            return self
        if self.world_size % tensor_parallel:
            raise TrainingError(
                f"{self.world_size} workers do not divide into tensor groups of {tensor_parallel}",
                hint="set execution's workers to a multiple of its tensor_parallel",
            )
        shape = (self.world_size // tensor_parallel, tensor_parallel)
        mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=("shards", "tensor"))
        mesh._flatten("ranks")  # DTensor then reduces over all ranks at once, with one result on all of them
        return dataclasses.replace(self, tensor_mesh=mesh)

    @property
    def tensor_parallel(self) -> int:
        """Workers of a tensor group."""
        return 1 if self.tensor_mesh is None else self.tensor_mesh["tensor"].size()

    @property
    def data(self) -> Worker:
        """This worker among those with other records; all of a tensor group have the same."""
        if self.tensor_mesh is None:
            return self
        shards = self.tensor_mesh["shards"]
        return Worker(shards.get_local_rank(), shards.size(), self.device, shards.get_group())

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


@dataclass(frozen=True)
class Sharding:
    """How FSDP2 shards a module among the workers of one training.

    Attributes:
        bfloat16: compute in bfloat16, reduce gradients in float32; the weights themselves keep their dtype.
        replicas: groups of workers that each hold all shards (HSDP). Gradients are reduced within a group, then averaged over groups.
        cpu_offload: shards, gradients and optimiser state stay in host memory; a part's weights are on the device while it computes.
    """

    worker: Worker
    bfloat16: bool = False
    replicas: int = 1
    cpu_offload: bool = False

    def __post_init__(self) -> None:
        if self.worker.tensor_mesh is not None and self.replicas > 1:
            raise TrainingError("tensor_parallel and replicas do not work together", hint="set one of execution's two to 1")
        if self.worker.world_size % self.replicas:
            raise TrainingError(
                f"{self.worker.world_size} workers do not divide into {self.replicas} replicas",
                hint="set execution's workers to a multiple of its replicas",
            )

    @property
    def shards(self) -> int:
        """Parts that every parameter is cut into."""
        return self.worker.data.world_size // self.replicas

    @property
    def rank(self) -> int:
        """This worker's part."""
        return self.worker.data.rank % self.shards

    @property
    def held_on(self) -> torch.device:
        """Device of the shards between computations."""
        return torch.device("cpu") if self.cpu_offload else self.worker.device

    def mesh(self) -> DeviceMesh:
        """(shards,), or (replicas, shards)."""
        if self.worker.tensor_mesh is not None:
            return self.worker.tensor_mesh["shards"]
        kind = self.worker.device.type
        if self.replicas == 1:
            return init_device_mesh(kind, (self.shards,))
        return init_device_mesh(kind, (self.replicas, self.shards), mesh_dim_names=("replicas", "shards"))


def fully_shard_parts(module: nn.Module, layers: list[nn.Module], sharding: Sharding) -> None:
    """Apply FSDP2 to each of ``layers``, then to the rest of ``module``: one part at a time is whole on the device."""
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    bfloat16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = bfloat16 if sharding.bfloat16 else MixedPrecisionPolicy()
    pinned = sharding.worker.device.type == "cuda"
    offload = CPUOffloadPolicy(pin_memory=pinned) if sharding.cpu_offload else OffloadPolicy()
    mesh = sharding.mesh()
    for part in (*layers, module):
        fully_shard(part, mesh=mesh, mp_policy=policy, offload_policy=offload)


def wrap(module: nn.Module, strategy: str, worker: Worker, layers: list[nn.Module], sharding: Sharding | None = None) -> nn.Module:
    """``module`` on the worker's device: as it is (alone), under DDP, or sharded by FSDP2. A sharded one is returned as it is.

    Args:
        layers: repeated blocks, which FSDP2 shards each on its own.
        sharding: settings of FSDP2; None: its defaults.
    """
    if isinstance(module, FSDPModule):
        return module
    if worker.group is None:
        return module.to(worker.device)
    if strategy == "ddp":
        ids = [worker.device.index] if worker.device.type == "cuda" else None
        return DistributedDataParallel(module.to(worker.device), device_ids=ids, gradient_as_bucket_view=True)
    fully_shard_parts(module, layers, sharding or Sharding(worker))
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
    if factor != 1.0:
        for group in by_mesh(grads):
            torch._foreach_mul_(group, factor)


def gradient_norm(module: nn.Module) -> float:
    """Global 2-norm over all parameters and shards."""
    norms = [torch.nn.utils.get_total_norm(group) for group in by_mesh(gradients(module))]
    return math.hypot(*(float(norm.full_tensor() if isinstance(norm, DTensor) else norm) for norm in norms))


def by_mesh(tensors: Iterable[P]) -> list[list[P]]:
    """Groups of tensors that are sharded over the same ranks: one operation takes no others together."""
    groups: dict[DeviceMesh | None, list[P]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device_mesh if isinstance(tensor, DTensor) else None, []).append(tensor)
    return list(groups.values())


def full_weights(module: nn.Module) -> dict[str, Tensor]:
    """All weights on the CPU of rank 0, names without wrapper prefixes; empty on other ranks. Call on every rank."""
    return cast("dict[str, Tensor]", get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True)))

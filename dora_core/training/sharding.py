"""Sharding a module whose weights were read by rows (``models/sharded_loading.py``), so that no rank ever holds it whole.

``fully_shard`` is applied while the parameters are on the meta device; then each rank's rows take their places. Adapters, which are small
and in no file, are made whole on every rank, from one seed, and cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from dora_core.models.host_memory import release_freed_memory
from dora_core.models.sharded_loading import CannotShard, Share, put
from dora_core.models.tensor_plan import TensorPlan
from dora_core.training.distributed import Sharding, fully_shard_parts


@dataclass(frozen=True)
class TensorSplit:
    """A model in the sharded module, and its plan for tensor groups."""

    model: PreTrainedModel
    plan: TensorPlan


def shard(
    module: nn.Module,
    layers: list[nn.Module],
    rows: dict[nn.Parameter, Tensor],
    share: Share,
    sharding: Sharding,
    split: TensorSplit | None = None,
) -> FSDPModule:
    """Shard ``module`` (each of ``layers``, then the rest) and put each rank's ``rows`` in place; parameters without rows are cut.

    Args:
        split: what the tensor group of ``sharding.worker`` splits first.

    Raises:
        CannotShard: a parameter was computed from weights that are not there; ``module`` is unchanged.
    """
    local = local_rows(module, rows, share)
    _to_meta(module)
    if split is not None:
        assert sharding.worker.tensor_mesh is not None, "the worker has a tensor group"
        apply_tensor_parallelism(split.model, sharding.worker.tensor_mesh["tensor"], split.plan.styles)
    fully_shard_parts(module, layers, sharding)
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        assert isinstance(parameter, DTensor), f"{name} is not sharded"
        if parameter not in replaced:
            placed = DTensor.from_local(
                local.pop(name).to(sharding.held_on).contiguous(),
                parameter.device_mesh,
                parameter.placements,
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
            replaced[parameter] = nn.Parameter(placed, parameter.requires_grad)
        put(module, name, replaced[parameter])
    if sharding.worker.device.type == "cpu":
        for layer in layers:  # after FSDP's own hook, which frees the gathered weights
            layer.register_forward_hook(lambda *_: release_freed_memory())
    assert isinstance(module, FSDPModule)
    return module


def local_rows(module: nn.Module, rows: dict[nn.Parameter, Tensor], share: Share) -> dict[str, Tensor]:
    """Each parameter's rows by name; ``rows`` is emptied. A copy that an adapter trains beside the original has the original's.

    Raises:
        CannotShard: a parameter was computed from weights that are not there.
    """
    local: dict[str, Tensor] = {}
    originals = dict(module.named_parameters(remove_duplicate=False))
    for name, parameter in module.named_parameters():
        original = originals.get(_original(name))
        if parameter in rows:
            local[name] = rows[parameter]
        elif original is not None and original in rows:
            local[name] = rows[original].clone()
        elif parameter.isnan().any():
            raise CannotShard(f"{name} starts from the weights themselves")
        else:
            local[name] = share.of(parameter.detach())
        if parameter.requires_grad:  # steps of training are too small for the weights' rounding in bfloat16
            local[name] = local[name].float()
    rows.clear()
    return local


def _to_meta(module: nn.Module) -> None:
    """Drop all parameters' storage: FSDP2 cuts parameters on the meta device without memory. Trained ones are float32."""
    moved: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        if parameter not in moved:
            dtype = torch.float32 if parameter.requires_grad else parameter.dtype
            moved[parameter] = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device="meta"), parameter.requires_grad)
        put(module, name, moved[parameter])


def _original(name: str) -> str:
    """``head.modules_to_save.default.weight`` → ``head.original_module.weight`` (peft)."""
    before, _, after = name.partition(".modules_to_save.")
    return f"{before}.original_module.{after.partition('.')[2]}"

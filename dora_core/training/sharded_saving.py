"""Saving a sharded model as a Hugging Face folder, so that no rank holds it whole.

Weights are gathered block by block (a transformer layer; embeddings and head, each on its own), parameter by parameter. Rank 0 merges the
block's adapters, restores the names and layouts that the files started from, and writes one safetensors file. An index lists the files.
Peak memory: a rank's share and one block; of the other ranks, where rows alone are shared, no more than their share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from dora_core.models.adapter_merge import adapted_path, merge_block, plain_name
from dora_core.models.host_memory import release_freed_memory
from dora_core.training.distributed import Worker

_BLOCK = re.compile(r"^(.*?\.\d+)\.")


def save_sharded(module: nn.Module, model: PreTrainedModel, folder: Path, dtype: torch.dtype, worker: Worker) -> None:
    """Write configuration and weights of ``model`` in ``dtype``, adapters merged. Call on every rank; rank 0 writes.

    Args:
        module: the sharded module.
        model: the model in it, below a peft wrapper if there is one.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # a pass without gradients leaves the root's weights gathered, in the precision of the computation
    release_freed_memory()
    prefix = _prefix_of(module, model)
    blocks = list(_blocks(module, model, prefix))
    buffers = _persistent_buffers(model)
    files: dict[str, str] = {}
    total = 0
    count = len(blocks)
    for number, names in enumerate(blocks, 1):
        merging = {name for name in names if adapted_path(model, name.removeprefix(prefix))}
        tensors = _gather(module, names, {name: torch.float32 if name in merging else dtype for name in names}, keep=worker.rank == 0)
        if worker.rank != 0:
            release_freed_memory()
            continue
        merged = merge_block(model, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
        del tensors
        if number == 1:
            merged |= buffers
        plain = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in merged.items()}
        del merged
        block = {name: tensor.contiguous() for name, tensor in revert_weight_conversion(model, plain).items()}
        del plain
        file = SAFE_WEIGHTS_NAME if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(block, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(block, file)
        total += sum(tensor.numel() * tensor.element_size() for tensor in block.values())
        del block
        release_freed_memory()
    if worker.rank == 0:
        if count > 1:
            index = {"metadata": {"total_size": total}, "weight_map": files}
            (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True))
        _save_configuration(model, folder, dtype)


def _gather(module: nn.Module, names: list[str], dtypes: dict[str, torch.dtype], *, keep: bool) -> dict[str, Tensor]:
    """Whole parameters on the CPU where ``keep``, on rank 0; on other ranks one at a time exists for a moment at most."""
    kept: dict[str, Tensor] = {}
    for name in names:
        whole = _whole(module.get_parameter(name).detach())
        if keep:
            assert whole is not None
            kept[name] = whole.to("cpu", dtypes[name] if whole.is_floating_point() else None)
        del whole
    return kept


def _whole(parameter: Tensor) -> Tensor | None:
    """Return all rows of a parameter; None on ranks other than 0 where the rows go to that one alone.

    ``full_tensor`` gathers on every rank, and gloo's ``all_gather`` holds a second copy of the result meanwhile. On CPUs, rows that are
    spread over all ranks are sent to rank 0, into their places.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    mesh, placements = parameter.device_mesh, parameter.placements
    if parameter.device.type != "cpu" or mesh.ndim > 1 or not placements[0].is_shard(0) or mesh.size() != dist.get_world_size():
        return parameter.full_tensor()
    rows, rank = parameter.to_local().contiguous(), dist.get_rank()
    if rank:
        if len(rows):
            dist.send(rows, dst=0)
        return None
    whole = torch.empty(parameter.shape, dtype=parameter.dtype)
    for source, part in enumerate(whole.chunk(mesh.size())):  # as FSDP2 shards; the last ranks may have none
        if source:
            dist.recv(part, src=source)
        else:
            part.copy_(rows)
    return whole


def _blocks(module: nn.Module, model: PreTrainedModel, prefix: str) -> Iterator[list[str]]:
    """Names of parameters that are gathered together: of a layer, or of one module outside the layers; neighbours that are together not
    larger than the largest are one block."""
    groups: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        inside = name.removeprefix(prefix)
        block = _BLOCK.match(inside)
        group = block.group(1) if block else adapted_path(model, inside) or plain_name(inside).rpartition(".")[0]
        groups.setdefault(group, []).append(name)
        sizes[group] = sizes.get(group, 0) + parameter.numel()
    together, size = list[str](), 0
    for group, names in groups.items():
        if together and size + sizes[group] > max(sizes.values()):
            yield together
            together, size = [], 0
        together, size = together + names, size + sizes[group]
    yield together


def _prefix_of(module: nn.Module, model: PreTrainedModel) -> str:
    return next(f"{name}." if name else "" for name, part in module.named_modules() if part is model)


def _persistent_buffers(model: PreTrainedModel) -> dict[str, Tensor]:
    buffers = {name for name, _ in model.named_buffers()}
    return {name: tensor.cpu() for name, tensor in model.state_dict().items() if name in buffers}


def _save_configuration(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    model.config.dtype = dtype
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)

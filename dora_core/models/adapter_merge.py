"""Merging the adapters of one block of a model (peft) from its gathered tensors, as ``merge_and_unload`` does for a whole model.

The layers of a sharded model cannot merge themselves: their weights are spread over ranks. So each adapted layer is copied without its
storage, filled with the gathered tensors, and merged by peft's own code in float32.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

_SAVED = ".modules_to_save."


def merge_block(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Plain names and weights of some of ``model``'s parameters; adapters that belong to them must be among ``tensors``.

    Args:
        model: the adapted model, below peft's wrapper.
        tensors: whole parameters by name. Emptied.
    """
    plain: dict[str, Tensor] = {}
    for path in {adapted_path(model, name): None for name in tensors}:
        if path is None:
            continue
        part = {name.removeprefix(f"{path}."): tensors.pop(name) for name in list(tensors) if adapted_path(model, name) == path}
        plain |= {f"{path}.{name}": tensor for name, tensor in _merged(model.get_submodule(path), part).items()}
    for name in list(tensors):
        tensor = tensors.pop(name)
        if ".original_module." not in name:  # its trained copy counts
            plain[plain_name(name)] = tensor
    return plain


def plain_name(name: str) -> str:
    """Name of a parameter in the model without adapters, of the layer that an adapter belongs to."""
    if _SAVED in name:
        before, _, after = name.partition(_SAVED)
        return f"{before}.{after.partition('.')[2]}"
    return name.replace(".original_module.", ".").replace(".base_layer.", ".")


def adapted_path(model: nn.Module, name: str) -> str | None:
    """Path of the adapted layer that a parameter is part of."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    parts = name.split(".")
    for depth in range(1, len(parts)):
        path = ".".join(parts[:depth])
        if isinstance(model.get_submodule(path), BaseTunerLayer):
            return path
    return None


def _merged(layer: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the base layer of one adapted layer after merging."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    twin = _without_storage(layer)
    for name, tensor in tensors.items():
        parent, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(parent), leaf, nn.Parameter(tensor.float().clone(), requires_grad=False))  # merging is in place
    base = twin
    for part in list(twin.modules()):  # adapters on several weights of one module are wrapped in each other
        if isinstance(part, BaseTunerLayer):
            part.merge()
            base = part.get_base_layer()
    return {name: parameter.detach() for name, parameter in base.named_parameters()}


def _without_storage(layer: nn.Module) -> Any:
    """A deep copy whose parameters are on the meta device; FSDP2's DTensors are not copied."""
    empty = {id(p): nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), p.requires_grad) for p in layer.parameters()}
    return copy.deepcopy(layer, memo=dict(empty))

"""Activations of the backward pass: recomputed, and what recomputing starts from kept on the device or in host memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel


def checkpoint_layers(model: PreTrainedModel, device: torch.device, *, offload: bool) -> None:
    """Keep one activation per layer of ``model``, its input, and recompute the rest in the backward pass.

    Args:
        device: the layers' device.
        offload: keep the inputs in host memory. Values and gradients are the same to the last bit.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if offload:
        model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=_Offloaded(device))


class _Offloaded:
    """Checkpointing function of a transformers model: the layer's first argument, its input, is kept on the CPU."""

    def __init__(self, device: torch.device):
        self._device = device

    def __call__(self, layer: Callable[..., Any], hidden: Tensor, *others: Any) -> Any:
        return checkpoint(self._on_device, layer, hidden.to("cpu"), *others, use_reentrant=False)

    def _on_device(self, layer: Callable[..., Any], hidden: Tensor, *others: Any) -> Any:
        return layer(hidden.to(self._device), *others)

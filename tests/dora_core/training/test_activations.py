"""Recomputed activations, kept on the device or in host memory: the same values and gradients. (Sharded: test_sharding.)"""

from __future__ import annotations

import pytest
import torch
import transformers

from dora_core.training.activations import checkpoint_layers
from tests.dora_core.models.small_models import configuration

IDS = torch.arange(1, 13)[None]


def gradient(offload: bool | None) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """(loss, gradients, bytes saved for the backward pass outside the layers' recomputation)."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configuration("llama")).train()
    if offload is not None:
        checkpoint_layers(model, torch.device("cpu"), offload=offload)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()], sum(kept)


@pytest.mark.parametrize("offload", [False, True])
def test_gradients_are_the_same_bits_with_fewer_activations(offload: bool) -> None:
    loss, expected, whole = gradient(None)
    again, got, kept = gradient(offload)
    assert torch.equal(loss, again) and all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert kept < whole / 2


def test_a_layers_input_is_moved_to_the_host_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU the moves are to and from the meta device, which leaves no values: only the devices are looked at."""
    model = transformers.AutoModelForCausalLM.from_config(configuration("llama")).train()
    checkpoint_layers(model, torch.device("meta"), offload=True)
    seen = []
    layer = model.model.layers[0]
    layer.input_layernorm.register_forward_pre_hook(lambda _, given: seen.append(given[0].device.type))
    with pytest.raises((RuntimeError, NotImplementedError)):
        model(IDS)
    assert seen == ["meta"]

"""Streamed layers: the resident model's values to the last bit, one layer in memory at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from dora_core.config.method import ModelConfig
from dora_core.models.layer_streaming import layer_paths, stream_layers
from dora_core.models.sharded_loading import model_class, read_config
from tests.dora_core.models.small_models import NAMES, saved

IDS = torch.arange(1, 13)[None]


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_resident_model(name: str, tmp_path: Path) -> None:
    config = ModelConfig(source=str(saved(name, tmp_path)))
    settled = read_config(config)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    model = stream_layers(model_class(transformers.AutoModelForCausalLM, settled), settled, config, torch.float32, torch.device("cpu"))
    paths = layer_paths(model)
    assert len(paths) == 3

    def in_memory() -> list[str]:
        return [path for path in paths if not any(p.is_meta for p in model.get_submodule(path).parameters())]

    seen: list[list[str]] = []
    for path in paths:
        model.get_submodule(path).register_forward_pre_hook(lambda *_: seen.append(in_memory()))
    with torch.no_grad():
        expected = plain(IDS).logits
        for _ in range(2):
            assert torch.equal(model(IDS).logits, expected)
    assert seen == [[path] for path in paths] * 2 and in_memory() == []


def test_weights_go_out_of_memory_when_a_layer_fails(tmp_path: Path) -> None:
    config = ModelConfig(source=str(saved("llama", tmp_path)))
    settled = read_config(config)
    model = stream_layers(model_class(transformers.AutoModelForCausalLM, settled), settled, config, torch.float32, torch.device("cpu"))
    layer = model.get_submodule(layer_paths(model)[1])

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    layer.self_attn.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        model(IDS)
    assert all(p.is_meta for p in layer.parameters())

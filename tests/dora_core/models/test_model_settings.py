"""Dropout of every depth is found, switched off and put back; the stored type of weights is known without loading them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from dora_core.errors import ModelError
from dora_core.models.model_settings import Origin, as_it_was, origin_of, remember, settle, stored_dtype


def test_dropout_of_nested_configurations_and_noise_of_routers() -> None:
    text = transformers.MixtralConfig(attention_dropout=0.2, router_jitter_noise=0.01, vocab_size=8, hidden_size=8)
    vision = transformers.CLIPVisionConfig(attention_dropout=0.3)
    config = transformers.LlavaConfig(text_config=text, vision_config=vision)
    origin = settle(config, "here")
    expected = {
        ("text_config", "attention_dropout"): 0.2,
        ("text_config", "router_jitter_noise"): 0.01,
        ("vision_config", "attention_dropout"): 0.3,
    }
    assert origin.dropout == expected
    assert (config.text_config.attention_dropout, config.text_config.router_jitter_noise, config.vision_config.attention_dropout) == (
        0,
        0,
        0,
    )


def test_the_configuration_is_as_it_was_while_it_is_saved() -> None:
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, attention_dropout=0.4
    )
    origin = settle(config, "here")
    model = transformers.LlamaForCausalLM(config)
    assert origin_of(model) == Origin()
    remember(model, origin)
    with pytest.raises(ZeroDivisionError), as_it_was(model):
        assert model.config.attention_dropout == 0.4
        raise ZeroDivisionError
    assert model.config.attention_dropout == 0.0


def test_the_stored_type_is_the_configurations_or_that_of_the_weights(tmp_path: Path) -> None:
    assert stored_dtype(transformers.LlamaConfig(dtype="bfloat16"), "nowhere") is torch.bfloat16
    assert stored_dtype(transformers.LlamaConfig(), "nowhere") is torch.float32
    save_file({"x": torch.zeros(2, dtype=torch.float16)}, tmp_path / "model.safetensors")
    assert stored_dtype(transformers.LlamaConfig(), str(tmp_path)) is torch.float16


def test_an_unknown_method_of_quantisation_is_named() -> None:
    config = transformers.LlamaConfig()
    config.quantization_config = {"bits": 4}
    with pytest.raises(ModelError, match="an unknown method"):
        settle(config, "here")

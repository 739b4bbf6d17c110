"""A small copy has every kind of layer of its model, and short thresholds."""

from __future__ import annotations

import torch
import transformers

from dora_core.models.small_copy import LARGEST, THRESHOLD, VOCABULARY, small_copy, thresholds


def meta(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def test_a_large_model_becomes_a_small_one_with_every_kind_of_layer() -> None:
    """gpt-oss-20b's own configuration: 24 layers of 32 experts, window 128, RoPE scaled from 4096 positions."""
    config = transformers.GptOssConfig()
    assert set(thresholds(config)) == {128, 4096}
    small = small_copy(meta(config))
    assert small is not None and small.dtype == torch.float64 and sum(p.numel() for p in small.parameters()) < LARGEST
    about = small.config
    assert set(about.layer_types) == {"sliding_attention", "full_attention"} and about.num_hidden_layers == len(about.layer_types)
    assert (about.sliding_window, about.vocab_size, about.head_dim) == (THRESHOLD, VOCABULARY, config.head_dim)
    assert config.num_hidden_layers == 36 or config.num_hidden_layers == 24, "the model's own configuration is untouched"


def test_the_copy_leaves_the_generator_and_is_always_the_same() -> None:
    model = meta(transformers.LlamaConfig(num_hidden_layers=4, hidden_size=512, num_attention_heads=8))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second = small_copy(model), small_copy(model)
    assert torch.equal(torch.rand(2), expected)
    assert first is not None and second is not None
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))

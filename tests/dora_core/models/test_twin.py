"""Twins: the same structure, small; and the decisions made on them are those made on the model itself."""

from __future__ import annotations

import pytest
import torch
import transformers

from dora_core.models.logprobs import ResponseLogps
from dora_core.models.twin import shrunk, twin
from tests.dora_core.models.small_models import NAMES, WIDTHS, configuration


@pytest.mark.parametrize("name", NAMES)
def test_packing_is_decided_as_on_the_model(name: str) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configuration(name))
    state = torch.get_rng_state()
    like = twin(type(model), model.config)
    assert torch.equal(torch.get_rng_state(), state), "seeds of heads and adapters are not used up"
    assert len(list(like.parameters())) < len(list(model.parameters()))
    whole, small = ResponseLogps(model), ResponseLogps(like)
    assert bool(whole.unpacked_because) == bool(small.unpacked_because)
    assert model.config._attn_implementation == like.config._attn_implementation


def test_every_kind_of_layer_is_kept() -> None:
    kinds = ["sliding_attention"] * 3 + ["full_attention"] + ["sliding_attention"] * 4
    config = transformers.Qwen3Config(**WIDTHS | {"num_hidden_layers": 8, "vocab_size": 5000}, layer_types=kinds, use_sliding_window=True)
    small = shrunk(config)
    assert (small.num_hidden_layers, small.layer_types, small.vocab_size) == (4, kinds[:4], 256)
    assert (config.num_hidden_layers, len(config.layer_types), config.vocab_size) == (8, 8, 5000), "the configuration itself stays"
    assert shrunk(configuration("llama")).num_hidden_layers == 2


def test_dense_layers_before_experts() -> None:
    config = transformers.DeepseekV3Config(num_hidden_layers=6, first_k_dense_replace=3)
    assert shrunk(config).num_hidden_layers == 4

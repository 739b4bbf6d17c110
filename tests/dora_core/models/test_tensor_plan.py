"""Plans for tensor groups, on the meta device. What a group computes: ``tests/dora_core/training/test_sharding.py``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from dora_core.errors import ModelError
from dora_core.models.tensor_plan import tensor_plan
from tests.dora_core.models.small_models import WIDTHS, configuration


def on_meta(config: Any) -> Any:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def test_projections_into_heads_and_widths_are_split_by_rows_and_those_out_of_them_by_columns() -> None:
    plan = tensor_plan(on_meta(configuration("tied")), 2)
    layer = {name.removeprefix("model.layers.0."): split for name, split in plan.dimensions.items() if ".layers.0." in name}
    into = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"]
    assert layer == {f"{name}.weight": 0 for name in into} | {"self_attn.o_proj.weight": 1, "mlp.down_proj.weight": 1}
    assert not [name for name in plan.styles if "layers" not in name], "embedding and head stay whole"


def test_a_bias_is_split_with_the_rows_and_whole_behind_a_sum() -> None:
    config = transformers.LlamaConfig(**WIDTHS, attention_bias=True, mlp_bias=True)
    dimensions = tensor_plan(on_meta(config), 2).dimensions
    assert dimensions["model.layers.0.self_attn.q_proj.bias"] == 0
    assert "model.layers.0.self_attn.o_proj.bias" not in dimensions and "model.layers.0.mlp.down_proj.bias" not in dimensions


@pytest.mark.parametrize(
    ("config", "ranks", "reason"),
    [
        (configuration("gpt2"), 2, "GPT2LMHeadModel has no plan for it"),
        (configuration("mixtral"), 2, "the plan of MixtralForCausalLM has parts that do not work here .*moe_tp_experts, packed_colwise"),
        (configuration("llama"), 4, "does not divide num_key_value_heads, 2, of LlamaForCausalLM"),
        (configuration("llama"), 3, "does not divide num_attention_heads, 4, of LlamaForCausalLM"),
        (
            transformers.LlamaConfig(**WIDTHS | {"intermediate_size": 49}),
            2,
            "does not divide the width of model.layers.0.mlp.gate_proj.weight, 49",
        ),
    ],
)
def test_what_the_plan_does_not_split_evenly_is_refused(config: Any, ranks: int, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as refused:
        tensor_plan(on_meta(config), ranks)
    assert "tensor_parallel to 1" in (refused.value.hint or "")

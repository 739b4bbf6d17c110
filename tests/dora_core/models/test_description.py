"""What a configuration says of a model, without weights, and what a plan refuses because of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from dora_core.config.method import LoraConfig, TextConfig
from dora_core.errors import ModelError
from dora_core.models.description import ModelDescription, Use, describe, examine
from tests.dora_core.models.architectures import ARCHITECTURES

SHORT = TextConfig(max_prompt_tokens=8, max_response_tokens=8)


def settings(name: str, **changes: Any) -> transformers.PretrainedConfig:
    about = ARCHITECTURES[name]
    return transformers.AutoConfig.for_model(about.kind, **((about.base or {}) | about.settings | changes))


def examined(name: str, use: Use, **changes: Any) -> list[str]:
    return examine(*describe(settings(name, **changes), name), use)


def test_a_description_is_made_without_weights() -> None:
    found, model = describe(settings("llama", tie_word_embeddings=True, dtype="bfloat16", attention_dropout=0.1), "here")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    # By hand, two layers of width 32: q and o of 4 heads, k and v of 2, three matrices of 48, two norms; one embedding; the last norm.
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    assert found == ModelDescription(
        architecture="LlamaForCausalLM",
        parameters=2 * layer + 64 * 32 + 32,
        dtype="bfloat16",
        tied=["model.embed_tokens", "lm_head"],
        dropout={"attention_dropout": 0.1},
        positions=64,
        threshold=None,
        short="packed",
        long="packed",
        reasons=[],
        experts=0,
        multimodal=False,
    )
    text = "\n".join(found.lines())
    assert "LlamaForCausalLM" in text and "records are packed" in text and "attention_dropout 0.1" in text and "one weight" in text
    assert model.config.attention_dropout == 0.0


def test_no_random_number_is_drawn() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    describe(settings("qwen2"), "here")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["mamba", "qwen3_5", "lfm2"])
def test_sampling_from_a_model_with_a_state_is_refused_at_once(name: str) -> None:
    assert examined(name, Use(SHORT)) == []
    with pytest.raises(ModelError, match=r"evaluate.kl_max_new_tokens: cannot sample from") as error:
        examined(name, Use(SHORT, samples={"evaluate.kl_max_new_tokens": 8}))
    assert "generate.served_model" in error.value.hint


@pytest.mark.parametrize(
    "use", [Use(TextConfig(max_prompt_tokens=60, max_response_tokens=5)), Use(SHORT, samples={"generate.max_new_tokens": 57})]
)
def test_more_tokens_than_positions_are_refused(use: Use) -> None:
    with pytest.raises(ModelError, match=r"need 65 positions, and GPT2LMHeadModel has 64") as error:
        examined("gpt2", use)
    assert "sum is at most 64" in error.value.hint


def test_a_length_at_which_the_model_would_be_wrong_is_refused() -> None:
    assert examined("llama, dynamic rope", Use(TextConfig(max_prompt_tokens=8, max_response_tokens=4)), max_position_embeddings=12) == []
    with pytest.raises(ModelError, match=r"positions|cannot be read right"):
        examined("llama, dynamic rope", Use(SHORT), max_position_embeddings=12)


def test_adapters_are_tried_under_their_key() -> None:
    with pytest.raises(ModelError, match=r"align.optimization.lora.target_modules or .* name lm_head, whose weight") as error:
        examined("llama", Use(SHORT, {"align.optimization.lora": LoraConfig(target_modules=["lm_head"])}), tie_word_embeddings=True)
    assert "align.optimization.lora.target_modules" in error.value.hint
    assert examined("llama", Use(SHORT, {"a": LoraConfig(), "b": LoraConfig(rank=2)})) == []


def test_a_mixture_of_experts_is_noted_where_it_is_trained() -> None:
    assert any("mixture of 4 experts" in note for note in examined("mixtral", Use(SHORT)))
    assert examined("mixtral", Use(SHORT, trains=False)) == []
    assert examined("mixtral", Use(SHORT, balance={"align.optimization.router_balance": 0.001})) == []
    assert examined("mixtral", Use(SHORT, balance={"align.optimization.router_balance": 0.001, "sft.optimization.router_balance": 0.0}))


@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_experts_that_cannot_be_balanced_are_refused_under_their_key(name: str) -> None:
    assert not any("router_balance" in note for note in examined("llama", Use(SHORT, balance={"a.router_balance": 0.0})))
    with pytest.raises(ModelError, match=r"align.optimization.router_balance: .* is not a mixture of experts whose routers are known"):
        examined(name, Use(SHORT, balance={"align.optimization.router_balance": 0.001}))


def test_layers_that_a_tensor_group_cannot_split_are_refused_under_the_stage() -> None:
    assert examined("llama", Use(SHORT, tensor={"execution.align.": 2})) == []
    with pytest.raises(ModelError, match=r"execution.align.tensor_parallel=3 does not divide num_attention_heads, 4,") as error:
        examined("llama", Use(SHORT, tensor={"execution.align.": 3}))
    assert "set execution.align.tensor_parallel to 1" in error.value.hint


def test_what_is_no_language_model_is_refused() -> None:
    with pytest.raises(ModelError, match="does not make a causal language model"):
        describe(transformers.ViTConfig(), "here")

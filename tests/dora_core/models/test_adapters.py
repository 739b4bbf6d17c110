"""Adapters: what is trained, what is merged and saved, and what is refused before training."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dora_core.config.method import LoraConfig
from dora_core.errors import ModelError
from dora_core.models.adapters import LEAST_SHARE, add_lora, base_of, coverage, merge_lora, save_adapter
from dora_core.models.loading import grow_reward_model, save_model
from dora_core.models.parts import tied_modules
from tests.dora_core.models.architectures import build

IDS = torch.tensor([[5, 6, 7, 8]])


def test_adapters_alone_are_trained_and_folding_them_in_changes_nothing(policy: PreTrainedModel) -> None:
    before = policy.eval()(input_ids=IDS).logits
    adapted = add_lora(policy, LoraConfig(rank=2, alpha=4))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert torch.equal(adapted.eval()(input_ids=IDS).logits, before), "new adapters are 0"
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    expected = adapted(input_ids=IDS).logits
    assert (expected - before).abs().max() > 1e-3
    merged = merge_lora(adapted)
    assert type(merged) is type(policy) and not any("lora_" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)
    assert merge_lora(merged) is merged


def test_wrapping_a_model_shows_no_warning_of_the_libraries(policy: PreTrainedModel, recwarn: pytest.WarningsRecorder) -> None:
    add_lora(policy, LoraConfig(rank=2))
    assert not [warning for warning in recwarn if issubclass(warning.category, FutureWarning)]


def test_a_reward_models_head_is_trained_beside_its_adapters(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(policy, tokenizer, tmp_path)
    adapted = add_lora(grow_reward_model(tmp_path)[0], LoraConfig(rank=2), "SEQ_CLS")
    assert any("score" in name for name, p in adapted.named_parameters() if p.requires_grad)


def test_adapters_on_modules_that_are_not_there_list_the_modules(policy: PreTrainedModel) -> None:
    with pytest.raises(ModelError, match=r"lora.target_modules=\['query'\] does not fit this model") as error:
        add_lora(policy, LoraConfig(target_modules=["query"]))
    assert "use all-linear, or some of: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in error.value.hint


def untied() -> PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=False
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("key", ["target_modules", "modules_to_save"])
@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_a_weight_that_embedding_and_head_share_is_not_adapted(policy: PreTrainedModel, key: str, module: str) -> None:
    """Merged, the adapter of one would change both."""
    assert tied_modules(policy) == ["model.embed_tokens", "lm_head"]
    with pytest.raises(ModelError, match=f"lora.target_modules or lora.modules_to_save name {module}, whose weight") as error:
        add_lora(policy, LoraConfig(rank=2, **{key: [module]}))
    assert "all-linear" in error.value.hint and "q_proj" in error.value.hint and "lm_head" not in error.value.hint


@pytest.mark.parametrize(
    "settings",
    [
        {"rank_stabilized": True},
        {"weight_decomposed": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"target_modules": r".*\.(q|v)_proj"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_kind_of_adapter_is_merged_into_what_it_computes(settings: dict) -> None:
    model = untied()
    before = model(input_ids=IDS).logits
    adapted = add_lora(model, LoraConfig(rank=2, alpha=4, **settings))
    torch.testing.assert_close(adapted(input_ids=IDS).logits, before, rtol=1e-5, atol=1e-6)  # DoRA's norms round
    for p in adapted.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    expected = adapted(input_ids=IDS).logits
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(merge_lora(adapted)(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank() -> None:
    """arXiv 2312.03732: alpha/√rank, 8/√4 = 4, and not 8/4 = 2."""
    for stable, scale in ((True, 4.0), (False, 2.0)):
        adapted = add_lora(untied(), LoraConfig(rank=4, alpha=8, rank_stabilized=stable))
        layers = [m for m in adapted.modules() if isinstance(m, peft.tuners.lora.Linear)]
        assert layers and {layer.scaling["default"] for layer in layers} == {scale}


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "llama4", "jamba"])
def test_routers_of_experts_are_not_adapted(name: str) -> None:
    adapted = add_lora(build(name).float(), LoraConfig(rank=2))
    layers = [key for key, m in adapted.named_modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]
    assert layers and not [key for key in layers if "router" in key or key.endswith((".gate", "_gate"))]


def test_experts_in_one_tensor_are_noted_and_can_be_named() -> None:
    few = coverage(add_lora(build("gpt_oss").float(), LoraConfig(rank=2)))
    assert few.share < 1.0 and (few.share >= LEAST_SHARE or "lora.target_parameters" in few.note())
    more = add_lora(build("gpt_oss").float(), LoraConfig(rank=2, target_parameters=["experts.gate_up_proj", "experts.down_proj"]))
    assert coverage(more).share > few.share
    # By hand: one layer, width 32, 4 heads of 8 in q, 4 in k, v (num_attention_heads = num_key_value_heads), 48 inner, 64 tokens.
    total = 2 * 64 * 32 + 4 * 32 * 32 + 3 * 32 * 48 + 3 * 32
    found = coverage(add_lora(untied(), LoraConfig(rank=2)))
    assert (found.adapted, found.trained, found.total) == (4 * 32 * 32 + 3 * 32 * 48, 0, total)


def test_an_adapter_of_its_own_names_its_base(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    save_model(policy, tokenizer, tmp_path / "base")
    save_adapter(add_lora(policy, LoraConfig(rank=2)), tmp_path / "adapter", "org/base", "a" * 40)
    assert base_of(tmp_path / "adapter") == ("org/base", "a" * 40)
    assert base_of(tmp_path / "base") is None
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is not the configuration of an adapter"):
        base_of(tmp_path / "adapter")

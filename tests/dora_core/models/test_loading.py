"""Building, loading, adapting and saving models, and the messages where a model does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dora_core.config.method import LoraConfig, ModelConfig
from dora_core.errors import ModelError
from dora_core.models.adapters import add_lora
from dora_core.models.loading import (
    SPECIAL_TOKENS,
    build_encoder,
    build_policy,
    grow_reward_model,
    load_encoder,
    load_policy,
    load_reward_model,
    load_tokenizer,
    save_model,
    train_tokenizer,
)
from dora_core.models.model_files import ModelFiles

SMALL = ModelConfig(hidden_size=32, layers=2, heads=2)
IDS = torch.tensor([[5, 6, 7, 8]])
TOKENIZER = train_tokenizer(["the cat sat on a mat"], 300)


@given(st.text())
def test_the_trained_tokenizer_gives_back_every_text(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == text


def test_the_trained_tokenizer_has_the_special_tokens_and_at_most_the_size_asked_for() -> None:
    assert {name: getattr(TOKENIZER, name) for name in SPECIAL_TOKENS} == SPECIAL_TOKENS
    assert TOKENIZER.pad_token_id == 0 and 256 < len(TOKENIZER) <= 300


def test_tiny_models_follow_from_the_seed_and_the_configuration() -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(torch.cat([p.flatten() for p in build_policy(SMALL, TOKENIZER, 64).parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    encoder, policy = build_encoder(SMALL, TOKENIZER, 40), build_policy(SMALL, TOKENIZER, 64)
    assert (encoder.config.max_position_embeddings, policy.config.max_position_embeddings) == (40, 64)
    for model in (encoder, policy):
        config = model.config
        sizes = (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
        assert sizes == (len(TOKENIZER), 32, 2, 2) and config.pad_token_id == TOKENIZER.pad_token_id


def test_a_saved_policy_is_loaded_by_folder_path_and_configuration_in_any_dtype(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(policy, tokenizer, tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}, "no file that could hold code"
    assert len({p.stat().st_mode for p in tmp_path.iterdir()}) == 1, "who may read the configuration may read the weights"
    expected = policy.eval()(input_ids=IDS).logits
    for source in (tmp_path, str(tmp_path), ModelConfig(source=str(tmp_path))):
        loaded, its_tokenizer = load_policy(source)
        assert torch.equal(loaded.eval()(input_ids=IDS).logits, expected)
        assert its_tokenizer("the cat")["input_ids"] == tokenizer("the cat")["input_ids"] == load_tokenizer(source)("the cat")["input_ids"]
    assert load_policy(tmp_path, torch.bfloat16)[0].dtype == torch.bfloat16


def test_a_policy_without_a_padding_token_pads_with_the_end_of_sequence(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer.pad_token = None
    save_model(policy, tokenizer, tmp_path)
    assert load_policy(tmp_path)[1].pad_token == SPECIAL_TOKENS["eos_token"]


def test_an_encoder_is_loaded_in_float32(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    encoder = build_encoder(SMALL, tokenizer, 64).to(torch.bfloat16)
    save_model(encoder, tokenizer, tmp_path)
    loaded, _ = load_encoder(ModelConfig(source=str(tmp_path)))
    assert isinstance(loaded, transformers.BertModel) and loaded.dtype == torch.float32


def test_a_model_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    for load in (load_policy, load_tokenizer, load_reward_model, grow_reward_model):
        with pytest.raises(ModelError, match="cannot load model") as error:
            load(tmp_path / "nothing")
        assert str(tmp_path / "nothing") in error.value.message and "*.safetensors" in error.value.hint


def test_weights_in_another_format_than_safetensors_are_not_read(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    """A pickle may hold code."""
    save_model(policy, tokenizer, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(policy.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load model"):
        load_policy(tmp_path)


def test_what_is_no_reward_model_is_refused(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    save_model(policy, tokenizer, tmp_path / "language")
    with pytest.raises(ModelError, match=r"is not a reward model: its weights lack score\.weight") as error:
        load_reward_model(tmp_path / "language")
    assert "the reward stage trains one" in error.value.hint
    save_model(transformers.LlamaForSequenceClassification(policy.config), tokenizer, tmp_path / "classes")
    with pytest.raises(ModelError, match="has 2 outputs, and a reward model has one") as error:
        load_reward_model(tmp_path / "classes")
    assert "num_labels = 1" in error.value.hint
    with pytest.raises(ModelError, match="is a classifier with 2 outputs"):
        grow_reward_model(tmp_path / "classes")
    with pytest.raises(ModelError, match="cannot load model"):
        load_reward_model(tmp_path / "nothing")


def test_dropout_is_off_and_comes_back_on_saving(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """GPT-2 has 0.1 three times; in training mode two passes are equal to the bit, and the saved configuration is the old one."""
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64)
    save_model(transformers.GPT2LMHeadModel(config), tokenizer, tmp_path / "start")
    model, _ = load_policy(tmp_path / "start")
    model.train()
    assert torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
    save_model(model, tokenizer, tmp_path / "saved")
    saved = transformers.AutoConfig.from_pretrained(tmp_path / "saved")
    assert (saved.resid_pdrop, saved.embd_pdrop, saved.attn_pdrop) == (0.1, 0.1, 0.1)
    assert model.config.resid_pdrop == 0.0


def test_quantised_weights_are_refused_with_the_remedy(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    for method, remedy in (("mxfp4", "Mxfp4Config"), ("fp8", "bfloat16 weights"), ("bitsandbytes", "unquantised"), ("gptq", "unquantised")):
        policy.config.quantization_config = {"quant_method": method}
        policy.config.save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=f"are quantised \\({method}\\)") as error:
            load_policy(tmp_path)
        assert remedy in error.value.hint


def test_an_adapters_folder_is_loaded_as_its_base_with_the_adapter(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(policy, tokenizer, tmp_path / "base")
    adapted = add_lora(load_policy(tmp_path / "base")[0], LoraConfig(rank=2))
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded, its_tokenizer = load_policy(tmp_path / "adapter")
    expected = adapted.eval()(input_ids=IDS).logits
    torch.testing.assert_close(loaded.eval()(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert type(loaded) is type(policy) and all(p.requires_grad for p in loaded.parameters())
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ModelError, match="is an adapter, and only a policy may be one"):
        grow_reward_model(tmp_path / "adapter")


def test_a_saved_model_declares_every_token_that_ends_a_turn(tmp_path: Path) -> None:
    """The template ends turns with <turn>, which the tokenizer's end token is not: a server that reads the folder stops at both."""
    tokenizer = train_tokenizer(["the cat sat on a mat"], 300)
    model = build_policy(SMALL, tokenizer, 64)
    save_model(model, tokenizer, tmp_path / "plain")
    assert ModelFiles(ModelConfig(source=str(tmp_path / "plain"))).generation_config.eos_token_id == tokenizer.eos_token_id
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = "{%- for m in messages %}{{- m.role + ': ' + m.content + '<turn>' }}{%- endfor %}"
    tokenizer.chat_template += "{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"
    save_model(model, tokenizer, tmp_path / "chat")
    declared = ModelFiles(ModelConfig(source=str(tmp_path / "chat"))).generation_config.eos_token_id
    assert declared == sorted(tokenizer.convert_tokens_to_ids(["<eos>", "<turn>"]))

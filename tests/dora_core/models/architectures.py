"""A tiny random model of every architecture of the table in dora_core/README.md, with short thresholds of length, and its ways."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import transformers

from dora_core.models.row_layout import Way

WINDOW = 10
"""Sliding window, chunk or original length of every architecture that has one."""
PACKED, PADDED, BY_LENGTH, REFUSED = Way.PACKED, Way.PADDED, Way.BY_LENGTH, Way.REFUSED
BASE: dict[str, Any] = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
GPT2 = dict(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)
LONGROPE = dict(
    rope_type="longrope", short_factor=[1.0] * 4, long_factor=[4.0] * 4, rope_theta=1e4, original_max_position_embeddings=WINDOW
)
MLA = dict(q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, num_key_value_heads=4)
DEEPSEEK = dict(MLA, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=1)
SLIDING = ["sliding_attention", "full_attention"]


class Architecture(NamedTuple):
    """Model type of transformers and settings over :data:`BASE` (None: instead of it), and the ways up to and beyond :data:`WINDOW`."""

    kind: str
    settings: dict[str, Any]
    short: Way = PACKED
    long: Way = PACKED
    base: dict[str, Any] | None = BASE


ARCHITECTURES = {
    "llama": Architecture("llama", {}),
    "llama, dynamic rope": Architecture(
        "llama",
        dict(max_position_embeddings=WINDOW, rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4)),
        PACKED,
        REFUSED,
    ),
    "mistral": Architecture("mistral", dict(sliding_window=WINDOW)),
    "mixtral": Architecture("mixtral", dict(EXPERTS, sliding_window=None)),
    "qwen2": Architecture("qwen2", dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)),
    "qwen3": Architecture("qwen3", dict(head_dim=8)),
    "qwen3_moe": Architecture(
        "qwen3_moe", dict(head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=1)
    ),
    "qwen3_5": Architecture(
        "qwen3_5_text",
        dict(
            head_dim=8,
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
        PADDED,
        PADDED,
    ),
    "gemma2": Architecture(
        "gemma2",
        dict(
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=WINDOW,
            layer_types=SLIDING,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
    ),
    "gemma3": Architecture("gemma3_text", dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW, layer_types=SLIDING)),
    "phi3": Architecture("phi3", dict(sliding_window=None)),
    "phi3, longrope": Architecture(
        "phi3",
        dict(sliding_window=None, rope_parameters=LONGROPE, original_max_position_embeddings=WINDOW, num_key_value_heads=4),
        PACKED,
        BY_LENGTH,
    ),
    "phi4": Architecture("phi3", dict(sliding_window=None, partial_rotary_factor=0.5)),
    "olmo2": Architecture("olmo2", {}),
    "smollm3": Architecture("smollm3", dict(no_rope_layers=[1, 0])),
    "granite": Architecture(
        "granite", dict(embedding_multiplier=2.0, attention_multiplier=0.3, residual_multiplier=0.5, logits_scaling=4.0)
    ),
    "cohere": Architecture("cohere", dict(logit_scale=0.25)),
    "cohere2": Architecture("cohere2", dict(logit_scale=0.25, sliding_window=WINDOW, layer_types=SLIDING)),
    "deepseek_v3": Architecture("deepseek_v3", DEEPSEEK),
    "deepseek_v3.2": Architecture("deepseek_v32", dict(DEEPSEEK, index_topk=WINDOW, index_n_heads=2, index_head_dim=16), PADDED, BY_LENGTH),
    "gpt_oss": Architecture("gpt_oss", dict(EXPERTS, head_dim=8, sliding_window=WINDOW, layer_types=SLIDING)),
    "llama4": Architecture(
        "llama4_text",
        dict(
            EXPERTS,
            head_dim=8,
            attention_chunk_size=WINDOW,
            layer_types=["chunked_attention", "full_attention"],
            intermediate_size_mlp=48,
            no_rope_layers=[1, 0],
            floor_scale=4,
        ),
        PADDED,
        PADDED,
    ),
    "falcon": Architecture("falcon", dict(new_decoder_architecture=True, num_kv_heads=2, alibi=False), PADDED, PADDED),
    "gpt_neox": Architecture("gpt_neox", {}),
    "gpt2": Architecture("gpt2", GPT2, base=None),
    "bloom": Architecture(
        "bloom", dict(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.0, attention_dropout=0.0), PADDED, PADDED, None
    ),
    "mamba": Architecture("mamba", dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4), PADDED, PADDED, None),
    "jamba": Architecture(
        "jamba",
        dict(
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=2,
            mamba_d_state=4,
            use_mamba_kernels=False,
        ),
        PADDED,
        PADDED,
    ),
    "lfm2": Architecture(
        "lfm2", dict(layer_types=["conv", "full_attention"], block_multiple_of=8, block_auto_adjust_ff_dim=False), PADDED, PADDED
    ),
    "minimax": Architecture(
        "minimax",
        dict(EXPERTS, head_dim=8, layer_types=["linear_attention", "full_attention"], block_size=WINDOW, sliding_window=None),
        PADDED,
        PADDED,
    ),
    "gemma3, multimodal": Architecture(
        "gemma3",
        dict(
            text_config=dict(BASE, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW, layer_types=SLIDING),
            vision_config=dict(
                hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
            ),
            mm_tokens_per_image=4,
            image_token_index=63,
        ),
        base=None,
    ),
    "gemma3n": Architecture(
        "gemma3n_text",
        dict(
            head_dim=8,
            sliding_window=WINDOW,
            layer_types=SLIDING,
            num_kv_shared_layers=0,
            vocab_size_per_layer_input=64,
            hidden_size_per_layer_input=8,
            laurel_rank=8,
            altup_num_inputs=2,
            activation_sparsity_pattern=[0.0, 0.0],
            final_logit_softcapping=3.0,
        ),
    ),
}


def build(name: str) -> transformers.PreTrainedModel:
    """The model, in float64, with weights large enough that every token matters."""
    about = ARCHITECTURES[name]
    config = transformers.AutoConfig.for_model(about.kind, **((about.base or {}) | about.settings))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager").double().eval()
    for key, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.5 if "embed" in key or "wte" in key else parameter.shape[-1] ** -0.5)
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model

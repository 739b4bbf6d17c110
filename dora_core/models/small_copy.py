"""A small model of the same architecture with random weights, on which the layout of rows is decided (``row_layout.py``).

Same classes, same kinds of layers, same options; fewer layers, heads, experts and tokens, and every length at which a model changes its
computation (sliding windows, chunks, the original length of a scaled RoPE, the keys of sparse attention) is :data:`THRESHOLD`, so that
records of a few tokens are on both sides of it. Weights are large enough that a token seen or not seen changes log-probabilities by far
more than rounding does.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

THRESHOLD = 8
POSITIONS = 64
VOCABULARY = 64
LARGEST = 64 * 10**6
"""Weights of a copy at most: building a larger one takes seconds."""

log = logging.getLogger("dora.logprobs")

_LENGTHS = (
    "sliding_window",
    "attention_chunk_size",
    "index_topk",
    "original_max_position_embeddings",
    "floor_scale",
    "attention_window_size",
)
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim")
_INNER = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim", "n_inner", "intermediate_size_mlp")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def small_copy(model: PreTrainedModel) -> PreTrainedModel | None:
    """A float64 copy in evaluation mode on the CPU; None if no configuration small enough builds and computes. Leaves the global generator
    as it was."""
    for shrink in (_shrunk, _shallow, copy.deepcopy):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                small = _built(type(model), shrink(model.config))
                if small is not None:
                    with torch.no_grad():
                        small(input_ids=torch.arange(5)[None], use_cache=False)
                    return small
            except Exception as error:  # the model's own code, with a configuration that it may not be made for
                log.debug("no small copy of %s by %s: %s", type(model).__name__, shrink.__name__, error)
    return None


def thresholds(config: PreTrainedConfig) -> list[int]:
    """Lengths in tokens at which a model of this configuration may change its computation."""
    found = []
    for part in _parts(config):
        values = vars(part)
        found += [values[name] for name in _LENGTHS if isinstance(values.get(name), int)]
        for rope in _ropes(part):
            if isinstance(length := rope.get("original_max_position_embeddings"), int):
                found.append(length)
        if _is_dynamic(part) and isinstance(values.get("max_position_embeddings"), int):
            found.append(values["max_position_embeddings"])
    return [length for length in found if length > 0]


def _built(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel | None:
    for part in _parts(config):
        part._attn_implementation_internal = None  # the model's own choice, not what was set since
        part._experts_implementation_internal = "eager"  # the others have no float64
    with torch.device("meta"):
        weights = sum(p.numel() for p in kind(copy.deepcopy(config)).parameters())
    if weights > LARGEST:
        return None
    model = kind(config).double().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            fan_in = parameter.shape[-1]
            nn.init.normal_(parameter, std=0.3 if "embed" in name or "wte" in name else 1.5 * fan_in**-0.5)
        else:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def _shrunk(config: PreTrainedConfig) -> PreTrainedConfig:
    """Narrow, shallow, with few experts and tokens."""
    config = _shallow(config)
    for part in _parts(config):
        values = vars(part)
        heads = next((name for name in _HEADS if isinstance(values.get(name), int)), None)
        width = next((name for name in _WIDTHS if isinstance(values.get(name), int)), None)
        if heads and width:
            head_dim = values.get("head_dim") or values[width] // values[heads]
            before, now = values[heads], min(values[heads], 4)
            for name in ("num_key_value_heads", "num_kv_heads"):
                if isinstance(values.get(name), int):
                    setattr(part, name, now if values[name] == before else 1 if values[name] == 1 else max(1, now // 2))
            setattr(part, heads, now)
            for name in _WIDTHS:
                if isinstance(values.get(name), int):
                    setattr(part, name, now * head_dim)
        for name in _INNER:
            if isinstance(values.get(name), int):
                setattr(part, name, min(values[name], 64))
        _few_experts(part)
    return config


def _few_experts(part: PreTrainedConfig) -> None:
    values = vars(part)
    for name in _EXPERTS:
        if isinstance(values.get(name), int) and values[name] > 8:
            setattr(part, name, 8)
            for groups, number in (("n_group", 2), ("topk_group", 1)):
                if (values.get(groups) or 1) > 1:
                    setattr(part, groups, number)
            for top in ("num_experts_per_tok", "top_k", "moe_top_k"):
                if isinstance(values.get(top), int):
                    setattr(part, top, min(values[top], 2))


def _shallow(config: PreTrainedConfig) -> PreTrainedConfig:
    """Few layers, of every kind one at least; few tokens; all thresholds at :data:`THRESHOLD`."""
    config = copy.deepcopy(config)
    for part in _parts(config):
        values = vars(part)
        depth_name = next((name for name in _LAYERS if isinstance(values.get(name), int)), None)
        if depth_name:
            _cut_layers(part, depth_name)
        for name in _LENGTHS:
            if isinstance(values.get(name), int):
                setattr(part, name, THRESHOLD)
        for rope in _ropes(part):
            if isinstance(rope.get("original_max_position_embeddings"), int):
                rope["original_max_position_embeddings"] = THRESHOLD
        for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
            if isinstance(values.get(name), int):
                setattr(part, name, THRESHOLD if _is_dynamic(part) else POSITIONS)
        for name in [name for name in values if name.startswith("vocab_size")]:
            if isinstance(values[name], int):
                setattr(part, name, VOCABULARY)
        for name in [name for name in values if name.endswith("_token_id")]:
            setattr(part, name, None if name == "pad_token_id" else 0)
    return config


def _cut_layers(part: PreTrainedConfig, depth_name: str) -> None:
    """As many of the first layers as hold one of every kind, two at least."""
    values = vars(part)
    depth = values[depth_name]
    kinds = [values[name] for name in values if isinstance(values[name], list) and len(values[name]) == depth and depth > 1]
    enough = 2
    for of_layers in kinds:
        if all(isinstance(kind, str | int | float | bool) for kind in of_layers):
            enough = max(enough, max(of_layers.index(kind) for kind in set(of_layers)) + 1)
    period = next(
        (values[n] for n in ("full_attention_interval", "attn_layer_period", "no_rope_layer_interval") if isinstance(values.get(n), int)), 0
    )
    first_dense = values.get("first_k_dense_replace") or 0
    if first_dense > 1:
        part.first_k_dense_replace = 1
    now = min(depth, max(enough, period, 2))
    for name in [name for name in values if isinstance(values[name], list) and len(values[name]) == depth and depth > 1]:
        setattr(part, name, values[name][:now])
    setattr(part, depth_name, now)


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """The configuration and those nested in it."""
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)


def _ropes(part: PreTrainedConfig) -> Iterator[dict[str, Any]]:
    """Settings of RoPE, which may be one set per kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = vars(part).get(name)
        if isinstance(rope, dict):
            yield rope
            yield from (nested for nested in rope.values() if isinstance(nested, dict))


def _is_dynamic(part: PreTrainedConfig) -> bool:
    return any(rope.get("rope_type", rope.get("type")) == "dynamic" for rope in _ropes(part))

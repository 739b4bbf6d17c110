"""A small model of the same structure, to try what cannot be tried on a sharded one.

How log-probabilities are computed (records packed or not) is decided by comparing both ways on the model. A rank of sharded training has no
model to run before its weights are wrapped, and in bfloat16 rounding would hide differences. The decision depends on the structure alone,
so it is made on a twin in float32: the same class and configuration, with as many layers as hold every kind of layer, few tokens in the
vocabulary, and random weights that let attention vary.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY = 256


def twin(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A random float32 model on the CPU; the state of torch's generator is left as it was."""
    small = shrunk(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind._from_config(small, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    return model.eval()


def shrunk(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration with fewer layers and a smaller vocabulary."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    layers = text.num_hidden_layers
    kept = min(layers, max(2, *(_until_all_seen(value) for value in _per_layer(text, layers).values()), _dense_layers(text) + 1))
    for name, value in _per_layer(text, layers).items():
        setattr(text, name, value[:kept])
    text.num_hidden_layers = kept
    text.vocab_size = min(text.vocab_size, VOCABULARY)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if hasattr(text, name):
            setattr(text, name, None)
    return small


def _per_layer(config: Any, layers: int) -> dict[str, list[Any]]:
    """Settings with one value a layer: kinds of attention, of feed-forward parts."""
    return {name: value for name, value in vars(config).items() if isinstance(value, list) and len(value) == layers}


def _until_all_seen(values: list[Any]) -> int:
    """Leading values that hold every value of the list."""
    kinds = {str(value) for value in values}
    return next(count for count in range(1, len(values) + 1) if {str(value) for value in values[:count]} == kinds)


def _dense_layers(config: Any) -> int:
    """Leading layers without experts (DeepSeek-V3), of which the ones with experts follow."""
    return int(getattr(config, "first_k_dense_replace", None) or 0)

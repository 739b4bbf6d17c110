"""Models for scoring that do not fit into one process: a layer's weights are read when the layer runs, and dropped after it.

Embeddings, head and whatever else is outside the repeated layers stay in memory. The forward pass is the model's own, so values equal those
of a resident model to the last bit. Every batch reads the layers once, from the files (the page cache, where memory suffices): large
batches (``execution.batch_tokens``) pay for it. Left out: generation, which would read all layers for every token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dora_core.config.method import ModelConfig
from dora_core.errors import ModelError
from dora_core.models.loading import load_policy_tokenizer
from dora_core.models.logprobs import ResponseLogps
from dora_core.models.model_settings import settle
from dora_core.models.sharded_loading import (
    CannotShard,
    WeightSource,
    build_on_meta,
    drop_weights,
    finish_loading,
    model_class,
    read_config,
    weight_files,
)
from dora_core.models.twin import twin


def streamed_logps(
    model: ModelConfig | str | Path, dtype: torch.dtype, device: torch.device
) -> tuple[ResponseLogps, PreTrainedTokenizerBase]:
    """Log-probabilities under a language model whose layers are streamed, and its tokenizer.

    Raises:
        ModelError: its files cannot be read layer by layer.
    """
    config = model if isinstance(model, ModelConfig) else ModelConfig(source=str(model))
    try:
        settled = read_config(config)
        settle(settled, config.source)
        kind = model_class(transformers.AutoModelForCausalLM, settled)
        like = twin(kind, settled)
        logps = ResponseLogps(like)  # decides on the twin how records are computed
        streamed = stream_layers(kind, settled, config, dtype, device)
    except CannotShard as error:
        raise ModelError(
            f"the layers of {config.source!r} cannot be streamed: {error.message}",
            hint="set the stage's execution to stream_layers: false, on machines whose memory holds the model",
        ) from error
    streamed.set_attn_implementation(like.config._attn_implementation)
    logps.model = streamed
    return logps, load_policy_tokenizer(config)


def stream_layers(
    kind: type[PreTrainedModel], settled: Any, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """A model for forward passes without gradients, on ``device``; its layers are on the meta device between their runs.

    Raises:
        CannotShard: the files cannot be read layer by layer; load the model whole.
    """
    model = build_on_meta(kind, settled, dtype)
    source = WeightSource.of(model, weight_files(config))
    paths = layer_paths(model)
    source.load(model, source.outside(paths), dtype, device)
    for path in paths:
        _Streamed(model, path, source, dtype, device)
    finish_loading(model, dtype, device, later=tuple(f"{path}." for path in paths))
    return model.eval().requires_grad_(False)


def layer_paths(model: nn.Module) -> list[str]:
    """Dotted names of the repeated blocks: the items of the longest ``ModuleList``."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    longest = max(lists, key=lambda name: len(lists[name]), default=None)
    return [] if longest is None else [f"{longest}.{number}" for number in range(len(lists[longest]))]


class _Streamed:
    """Hooks of one layer: weights in before it runs, out after."""

    def __init__(self, model: PreTrainedModel, path: str, source: WeightSource, dtype: torch.dtype, device: torch.device):
        self._model, self._path, self._source, self._dtype, self._device = model, path, source, dtype, device
        layer = model.get_submodule(path)
        layer.register_forward_pre_hook(self._read)
        layer.register_forward_hook(self._drop, always_call=True)

    def _read(self, layer: nn.Module, _: object) -> None:
        self._source.load(self._model, self._source.inside(self._path), self._dtype, self._device)

    def _drop(self, layer: nn.Module, _: object, __: object) -> None:
        drop_weights(layer)

"""Parts of a language model: its text decoder, and modules that share a weight."""

from __future__ import annotations

from transformers import PreTrainedModel


def text_body(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a causal language model below its output embedding; of a multimodal model, its text decoder. The model itself if it has
    no such part."""
    body: PreTrainedModel = model.base_model if model.base_model is not model else getattr(model, "model", model)
    composite = model.config.get_text_config() is not model.config
    return body.get_decoder() if composite else body


def tied_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules that share a weight with another one."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return [name for names in owners.values() if len(names) > 1 for name in names]

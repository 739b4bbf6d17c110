"""A model's configuration as this project uses it: without dropout, unquantised, and what it was before.

Dropout is off wherever log-probabilities are trained or read: a step's gradient must not depend on how it is spread over workers, a resumed
run must end with the same weights, and at step 0 the policy must be the reference. The saved model gets the values of its start back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from dora_core.errors import ModelError

_KEY = "_dora_origin"
_REMEDIES = {
    "mxfp4": "save it dequantised: from_pretrained(…, quantization_config=Mxfp4Config(dequantize=True), dtype='bfloat16')",
    "fp8": "use the bfloat16 weights of the same model, or save it dequantised: FineGrainedFP8Config(dequantize=True)",
    "bitsandbytes": "use the unquantised weights; to save memory, train adapters (optimization.lora) under strategy fsdp",
}


@dataclass(frozen=True)
class Origin:
    """What loading changed: ``dtype`` of the stored weights, and dropout (and routers' noise) by the place in the configuration."""

    dtype: torch.dtype = torch.float32
    dropout: dict[tuple[str, ...], float] = field(default_factory=dict)


def settle(settings: PretrainedConfig, source: str) -> Origin:
    """Switch all dropout of ``settings`` off, in place.

    Raises:
        ModelError: the weights are quantised.
    """
    refuse_quantised(settings, source)
    found = dict(_dropout(settings, ()))
    for place in found:
        _set(settings, place, 0.0)
    return Origin(stored_dtype(settings, source), found)


def refuse_quantised(settings: PretrainedConfig, source: str) -> None:
    """Raise ModelError for quantised weights, with the remedy of the method."""
    quantisation = getattr(settings, "quantization_config", None)
    if not quantisation:
        return
    about = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
    method = str(getattr(about.get("quant_method"), "value", about.get("quant_method")) or "an unknown method")
    raise ModelError(
        f"the weights of {source!r} are quantised ({method}): trained or merged, they would be rounded again in another way",
        hint=_REMEDIES.get(method, "use the unquantised weights of the same model"),
    )


def stored_dtype(settings: PretrainedConfig, source: str) -> torch.dtype:
    """Floating-point type of the stored weights: as the configuration says, else that of the first weight of a local folder."""
    for config in (settings, settings.get_text_config()):
        named = getattr(config, "dtype", None)
        named = getattr(torch, named, None) if isinstance(named, str) else named
        if isinstance(named, torch.dtype):
            return named
    for file in sorted(Path(source).glob("*.safetensors")):
        from safetensors import safe_open

        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dictionary
                found: torch.dtype = weights.get_slice(name)[:0].dtype
                return found
    return torch.float32


def remember(model: PreTrainedModel, origin: Origin) -> None:
    """Keep ``origin`` with the model until it is saved."""
    setattr(model, _KEY, origin)


def origin_of(model: PreTrainedModel) -> Origin:
    """What loading changed; nothing for a model built here."""
    found: Origin = getattr(model, _KEY, Origin())
    return found


@contextlib.contextmanager
def as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """The configuration with the dropout of the start, for the time of saving."""
    dropout = origin_of(model).dropout
    try:
        for place, value in dropout.items():
            _set(model.config, place, value)
        yield
    finally:
        for place in dropout:
            _set(model.config, place, 0.0)


def _dropout(settings: PretrainedConfig, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    for name, value in vars(settings).items():
        if isinstance(value, PretrainedConfig):
            yield from _dropout(value, (*above, name))
        elif isinstance(value, float) and value > 0 and ("drop" in name or "jitter" in name):
            yield (*above, name), value


def _set(settings: Any, place: tuple[str, ...], value: float) -> None:
    for name in place[:-1]:
        settings = getattr(settings, name)
    setattr(settings, place[-1], value)

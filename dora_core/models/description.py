"""One description of a language model, from its configuration alone: no weights are read, the model is built on the meta device.

A plan makes it and asks :func:`examine` whether the model can be used as configured, so that what a run would refuse, or do wrong, is said
before anything is computed.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from dora_core.config.method import LoraConfig, TextConfig
from dora_core.errors import ModelError
from dora_core.models.adapters import add_lora, coverage
from dora_core.models.generation import refuse_unsampled
from dora_core.models.model_settings import settle
from dora_core.models.parts import tied_modules
from dora_core.models.routers import Routers
from dora_core.models.row_layout import Way, positions, row_layout
from dora_core.models.tensor_plan import tensor_plan
from dora_core.strict_model import StrictModel

log = logging.getLogger("dora.models")


class ModelDescription(StrictModel):
    """What a model's configuration says.

    Attributes:
        architecture: class of transformers, ``LlamaForCausalLM``.
        parameters: number of weights.
        dtype: type of the stored weights, ``bfloat16``.
        tied: modules that share one weight: the embedding and the head.
        dropout: values of the configuration by their place in it; all of them are off here.
        positions: tokens of prompt and response together at most; None: no limit.
        threshold: longest rows that are read as ``short`` says; longer ones as ``long``; None: there is one way.
        short, long: ``packed``, ``padded``, ``by length`` or ``refused``.
        reasons: why a prompt is not computed once per record.
        experts: of a mixture's layer; 0: no mixture.
        multimodal: text is one of its inputs.
    """

    architecture: str
    parameters: int
    dtype: str
    tied: list[str]
    dropout: dict[str, float]
    positions: int | None
    threshold: int | None
    short: str
    long: str
    reasons: list[str]
    experts: int
    multimodal: bool

    def lines(self) -> list[str]:
        """Facts for a plan."""
        limit = "any length" if self.positions is None else f"{self.positions:,} positions"
        kind = f"{self.architecture}, {self.parameters:,} weights in {self.dtype}, {limit}"
        ways = (
            f"records are {self.short}"
            if self.threshold is None
            else f"records up to {self.threshold} tokens are {self.short}, longer ones {self.long}"
        )
        found = [kind, f"{ways}{': ' if self.reasons else ''}{'; '.join(self.reasons)}"]
        if self.tied:
            found.append(f"{' and '.join(self.tied)} are one weight")
        if self.dropout:
            found.append(f"switched off: {', '.join(f'{name} {value:g}' for name, value in self.dropout.items())}")
        return found

    def notes(self) -> list[str]:
        """Doubts for users."""
        if not self.experts:
            return []
        return [
            f"{self.architecture} is a mixture of {self.experts} experts: no auxiliary loss balances their load while it is trained; "
            "set optimization.router_balance (.001), train adapters (optimization.lora), which leave routers as they are, or keep an eye "
            "on the share of each expert"
        ]


@dataclass(frozen=True)
class Use:
    """How a run would use the model.

    Attributes:
        text: lengths of prompts and responses.
        lora: adapters, by the key of the configuration that asks for them.
        trains: whether its weights are trained at all.
        samples: keys of the configuration that sample from it, and their most new tokens.
        balance: weight of the loss that balances experts, by the key of the configuration.
        tensor: workers that split each layer, by the section of the configuration.
    """

    text: TextConfig
    lora: Mapping[str, LoraConfig] = field(default_factory=dict)
    trains: bool = True
    samples: Mapping[str, int] = field(default_factory=dict)
    balance: Mapping[str, float] = field(default_factory=dict)
    tensor: Mapping[str, int] = field(default_factory=dict)


def empty_model(settings: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The language model of a configuration, without weights.

    Raises:
        ModelError: the configuration is not that of a causal language model.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(settings, trust_remote_code=trust_remote_code)
    except (ValueError, ImportError, RuntimeError, AttributeError, TypeError) as error:
        raise ModelError(
            f"a configuration of type {settings.model_type!r} does not make a causal language model: {str(error).splitlines()[0][:200]}",
            hint="use a …ForCausalLM model; newer ones need a newer transformers",
        ) from error
    model.tie_weights()
    return model


def describe(settings: PretrainedConfig, source: str, *, trust_remote_code: bool = False) -> tuple[ModelDescription, PreTrainedModel]:
    """The description, and the model without weights that it is made from, with its dropout off.

    Raises:
        ModelError: the weights are quantised, the model is not a causal language model, or it cannot be read row by row.
    """
    settings = copy.deepcopy(settings)
    origin = settle(settings, source)
    model = empty_model(settings, trust_remote_code=trust_remote_code)
    layout, text = row_layout(model, torch.device("cpu")), settings.get_text_config()
    experts = [getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")]
    found = ModelDescription(
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        dtype=str(origin.dtype).removeprefix("torch."),
        tied=tied_modules(model),
        dropout={".".join(place): value for place, value in origin.dropout.items()},
        positions=positions(settings),
        threshold=None if layout.threshold == float("inf") else int(layout.threshold),
        short=layout.short.value,
        long=layout.long.value,
        reasons=list(layout.reasons),
        experts=max((n for n in experts if isinstance(n, int) and n > 1), default=0),
        multimodal=text is not settings,
    )
    return found, model


def examine(found: ModelDescription, model: PreTrainedModel, use: Use) -> list[str]:
    """Notes on using the described model as a run would; wraps ``model`` in adapters.

    Raises:
        ModelError: rows would not fit or could not be read, adapters do not fit, it cannot be sampled from, its experts not balanced, or
            its layers not split.
    """
    _check_lengths(found, use)
    for key in use.samples:
        refuse_unsampled(model, key)
    notes = found.notes() if use.trains and not (use.balance and all(use.balance.values())) else []
    for key in (key for key, weight in use.balance.items() if weight):
        try:
            Routers(model)
        except ModelError as error:
            raise ModelError(error.message.replace("optimization.router_balance", key), hint=error.hint or "") from error
    for section, ranks in use.tensor.items():
        if ranks > 1:
            try:
                tensor_plan(model, ranks)
            except ModelError as error:
                raise ModelError(section + error.message, hint=(error.hint or "").replace("execution's ", section)) from error
    for key, lora in use.lora.items():
        notes += _lora_notes(model, key, lora)
    return notes


def _check_lengths(found: ModelDescription, use: Use) -> None:
    budgets = {"text.max_response_tokens": use.text.max_response_tokens} | dict(use.samples)
    for key, most in budgets.items():
        needed = use.text.max_prompt_tokens + most
        if found.positions is not None and needed > found.positions:
            raise ModelError(
                f"text.max_prompt_tokens={use.text.max_prompt_tokens} and {key}={most} need {needed} positions, and "
                f"{found.architecture} has {found.positions}",
                hint=f"set them so that their sum is at most {found.positions}, or use a model with more positions",
            )
        refused = found.short if found.threshold is None or needed <= found.threshold else found.long
        if refused == Way.REFUSED.value:
            raise ModelError(
                f"{found.architecture} cannot be read right at {needed} tokens, the sum of text.max_prompt_tokens and {key}: "
                f"{'; '.join(found.reasons)}",
                hint="use another model" if found.threshold is None else f"set them so that their sum is at most {found.threshold}",
            )


def _lora_notes(model: PreTrainedModel, key: str, lora: LoraConfig) -> list[str]:
    try:
        with torch.device("meta"):  # magnitudes of DoRA adapters are norms of weights, which are not there
            adapted = add_lora(model, lora.evolve(weight_decomposed=False))
    except ModelError as error:
        raise ModelError(error.message.replace("lora.", f"{key}."), hint=(error.hint or "").replace("lora.", f"{key}.")) from error
    note = coverage(adapted).note()
    adapted.unload()  # the next adapters go onto the plain model
    return [f"{key}: {note}"] if note else []

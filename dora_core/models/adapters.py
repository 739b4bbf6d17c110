"""Low-rank adapters (through peft): on a model to be trained, merged into it, and in a folder of their own over a base.

Refused before training is what would be trained and then saved as something else: an adapter on a weight that the embedding and the head
share. Routers of mixtures of experts are never adapted by ``all-linear``: a changed choice of experts is a jump, and nothing balances the
load here.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from dora_core.errors import ModelError
from dora_core.models.parts import text_body, tied_modules

if TYPE_CHECKING:
    from dora_core.config.method import LoraConfig

ADAPTER_FILE = "adapter_config.json"
LEAST_SHARE = 0.2
"""Adapters that cover a smaller share of the weights are worth a note: most of the model cannot learn."""


@dataclass(frozen=True)
class Coverage:
    """Weights of a model that adapters can change: ``adapted`` by low-rank updates, ``trained`` whole, of ``total``."""

    adapted: int
    trained: int
    total: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return (self.adapted + self.trained) / self.total

    def note(self) -> str:
        """A sentence for users where the share is small; empty otherwise."""
        if self.share >= LEAST_SHARE:
            return ""
        return (
            f"the adapters cover {self.share:.0%} of the weights: experts that are one tensor are no linear layers; add them by "
            "lora.target_parameters (e.g. [experts.gate_up_proj, experts.down_proj])"
        )


def add_lora(model: PreTrainedModel, lora: LoraConfig, task_type: str = "CAUSAL_LM") -> PreTrainedModel:
    """Wrap ``model`` with low-rank adapters; only they are trained, ``lora.modules_to_save``, and with ``SEQ_CLS`` the head.

    :func:`merge_lora` folds them in. Works on the meta device too, which is how a plan tries it.

    Raises:
        ModelError: a target is not in the model, or is a weight that the embedding and the head share.
    """
    import peft

    tied = tied_modules(model)
    linear = _adaptable(model, tied)
    targets = linear if lora.target_modules == "all-linear" else lora.target_modules
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        target_parameters=lora.target_parameters or None,
        modules_to_save=lora.modules_to_save or None,
        use_rslora=lora.rank_stabilized,
        use_dora=lora.weight_decomposed,
        task_type=task_type,
    )
    fitting = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
    try:
        with _quiet_peft():
            adapted = peft.get_peft_model(model, config)
    except (ValueError, RuntimeError, NotImplementedError, TypeError) as error:
        raise ModelError(
            f"lora.target_modules={lora.target_modules!r} does not fit this model: {str(error).splitlines()[0]}",
            hint=f"use all-linear, or some of: {fitting}",
        ) from error
    if taken := [name for name in tied if _is_wrapped(model.get_submodule(name))]:
        raise ModelError(
            f"lora.target_modules or lora.modules_to_save name {taken[0].rsplit('.', 1)[-1]}, whose weight is also that of "
            f"{next(name for name in tied if name != taken[0])}: merged, the adapter would change both, and the saved model would not be "
            "the trained one",
            hint=f"set lora.target_modules to all-linear, or to some of: {fitting}",
        )
    return adapted


def merge_lora(model: PreTrainedModel) -> PreTrainedModel:
    """The plain model with adapters folded into its weights; a model without adapters is returned as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def save_adapter(model: Any, folder: Path, base: str, revision: str | None) -> None:
    """Save the adapters of ``model`` alone, over ``base`` at ``revision``, as peft and inference servers read them."""
    for config in model.peft_config.values():
        config.base_model_name_or_path, config.revision, config.inference_mode = base, revision, True
    model.save_pretrained(folder, save_embedding_layers=False)  # by itself, peft asks the hub whether the vocabulary grew
    (folder / "README.md").unlink(missing_ok=True)  # peft's model card, all of it empty fields


def coverage(model: nn.Module) -> Coverage:
    """What the adapters of a wrapped model reach."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted: set[nn.Parameter] = set()
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            name = getattr(layer, "parameter_name", None) or "weight"
            base = layer.get_base_layer()
            if isinstance(weight := getattr(base, name, None), nn.Parameter):
                adapted.add(weight)
    extra = {p for name, p in model.named_parameters() if "lora_" in name}
    whole = {p for p in model.parameters() if p.requires_grad} - extra
    total = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in extra) - sum(p.numel() for p in whole)
    return Coverage(sum(p.numel() for p in adapted), sum(p.numel() for p in whole), total)


def base_of(folder: Path) -> tuple[str, str | None] | None:
    """Base model and its revision, where ``folder`` holds an adapter and no weights of its own; None for any other folder.

    Raises:
        ModelError: the adapter's configuration is damaged or names no base.
    """
    file = folder / ADAPTER_FILE
    if not file.is_file() or any(folder.glob("model*.safetensors")):
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        base, revision = found["base_model_name_or_path"], found.get("revision")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{file} is not the configuration of an adapter: {error}", hint="save the adapter again, or merge it first"
        ) from error
    if not base:
        raise ModelError(f"{file} names no base model", hint="set base_model_name_or_path there, or merge the adapter into its base first")
    local = (folder / base).resolve()
    return (str(local) if not Path(base).is_absolute() and local.is_dir() else base, revision)


def merged_adapter(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """``base`` with the adapter in ``folder`` folded in.

    Raises:
        ModelError: the adapter does not fit its base, or is of a kind that cannot be folded in.
    """
    import peft

    try:
        with _quiet_peft():
            adapted = peft.PeftModel.from_pretrained(base, folder)
        return adapted.merge_and_unload()
    except (ValueError, RuntimeError, AttributeError, KeyError, OSError) as error:
        raise ModelError(
            f"the adapter in {folder} cannot be merged into its base: {str(error).splitlines()[0]}",
            hint="merge it with the program that trained it, and give the merged folder",
        ) from error


@contextlib.contextmanager
def _quiet_peft() -> Iterator[None]:
    """No deprecation warning of transformers, one of whose properties peft 0.21 reads by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _adaptable(model: PreTrainedModel, tied: list[str]) -> list[str]:
    """Linear layers below the head of the text model, without routers: ``all-linear``."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    experts = _expert_counts(model)
    text = text_body(model) if model.config.get_text_config() is not model.config else model
    prefix = next(name for name, module in model.named_modules() if module is text)
    found = []
    for name, module in text.named_modules(prefix=prefix):
        if not isinstance(module, nn.Linear | Conv1D) or module is head or name in tied:
            continue
        if name in ("score", "classifier") or _is_router(model, name, module, experts):
            continue
        found.append(name)
    return found


def _expert_counts(model: PreTrainedModel) -> set[int]:
    config = model.config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return {value for name in names if isinstance(value := getattr(config, name, None), int) and value > 1}


def _is_router(model: PreTrainedModel, name: str, module: nn.Module, experts: set[int]) -> bool:
    kinds = [type(module).__name__, *(type(model.get_submodule(parent)).__name__ for parent in [name.rpartition(".")[0]] if parent)]
    if any(kind.lower().endswith("router") for kind in kinds):
        return True
    last = name.rsplit(".", 1)[-1]
    width = getattr(module, "out_features", None)
    return bool(experts) and (width in experts or (width == 1 and "gate" in last))


def _is_wrapped(module: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)

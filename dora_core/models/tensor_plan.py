"""Weights of a model that tensor parallelism splits, by the model's own plan (``tp_plan`` of transformers).

A rank of a tensor group holds some heads of every attention and a part of the width of every feed-forward network; all ranks of a group
compute the same records, and add up what they found after each of the two (arXiv 1909.08053). Attention over packed records works on the
heads that are there. Embeddings and head stay whole: the vocabulary's blocks (``linear_logps.py``) need all of the head.

:func:`tensor_plan` refuses what the plan does not split evenly. Left out: plans for experts and latent attention (Mixtral,
DeepSeek-V3), and adapters, whose factors no plan names: their gradients would be silently wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from dora_core.config.method import OptimizationConfig
from dora_core.errors import ModelError

_SPLIT_DIMENSION = {
    "colwise": 0,
    "colwise_gather_output": 0,
    "rowwise": 1,
    "rowwise_split_input": 1,
    "replicated_with_grad_allreduce": None,
}
_HEADS = ("num_attention_heads", "num_key_value_heads")
_HINT = "set execution's tensor_parallel to 1: strategy fsdp shards the model without it"


def refuse_with_tensor_groups(optimization: OptimizationConfig, ranks: int, stage: str) -> None:
    """Raise ModelError for options that groups of ``ranks`` would compute wrongly, or that nothing tests with them."""
    asked = {
        "lora": optimization.lora is not None,
        "router_balance": bool(optimization.router_balance),
        "optimizer=adamw_8bit": optimization.optimizer == "adamw_8bit",
    }
    if ranks > 1 and (wanted := [name for name, is_asked in asked.items() if is_asked]):
        raise ModelError(f"execution.{stage}.tensor_parallel={ranks} does not work with {stage}.optimization.{wanted[0]}", hint=_HINT)


@dataclass(frozen=True)
class TensorPlan:
    """``styles``: module or parameter → how transformers computes it; ``dimensions``: split parameter → its dimension, 0 or 1."""

    styles: dict[str, str]
    dimensions: dict[str, int]


def tensor_plan(model: PreTrainedModel, ranks: int) -> TensorPlan:
    """The plan of ``model`` (on any device) for groups of ``ranks``.

    Raises:
        ModelError: the model has no plan, its plan has a part that cannot be done here, or a number is not a multiple of ``ranks``.
    """
    name = type(model).__name__
    whole = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    modules = dict(model.named_modules())
    full = model._expand_parallel_plan(model.tp_plan or {})
    styles = {place: style for place, style in full.items() if _owner(modules, place) not in whole}
    if not styles:
        raise ModelError(f"tensor_parallel={ranks}: {name} has no plan for it (tp_plan)", hint=_HINT)
    if others := sorted(set(styles.values()) - _SPLIT_DIMENSION.keys()):
        raise ModelError(f"tensor_parallel={ranks}: the plan of {name} has parts that do not work here ({', '.join(others)})", hint=_HINT)
    text = model.config.get_text_config()
    counts = {key: value for key in _HEADS if isinstance(value := getattr(text, key, None), int)}
    dimensions: dict[str, int] = {}
    for place, parameter in model.named_parameters():
        split = _SPLIT_DIMENSION[styles[place]] if place in styles else None
        if split is None or split >= parameter.dim():  # the bias of a split sum is added once, by its owner
            continue
        dimensions[place] = split
        counts[f"the width of {place}"] = parameter.shape[split]
    for key, count in counts.items():
        if count % ranks:
            raise ModelError(f"tensor_parallel={ranks} does not divide {key}, {count}, of {name}", hint=_HINT)
    return TensorPlan(styles, dimensions)


def _owner(modules: dict[str, object], place: str) -> int:
    """Identity of the module at ``place``, or of the one whose parameter that is."""
    return id(modules.get(place, modules.get(place.rpartition(".")[0])))

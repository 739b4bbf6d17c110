"""Presets of trusted data (``data.golden``): one response per row."""

from __future__ import annotations

from dora_core.data.presets.base import Preset, Variant, register_preset


@register_preset
class SftMessages(Preset):
    """Conversations for supervised training (HuggingFaceH4/ultrachat_200k, allenai/tulu-3-sft-mixture, ShareGPT): the last turn is the
    response."""

    name = "sft_messages"
    golden = True
    variants = (
        Variant(
            needs={"messages": "messages"},
            without=frozenset({"chosen", "rejected", "response", "rejected_response", "label"}),
            adapter={
                "shape": "single",
                "columns": {"prompt": False, "response": "messages"},
                "context": {"system": "system"},
                "carry": ["source", "prompt_id"],
                "ignore": ["prompt"],
            },
            optional=frozenset({"context.system"}),
        ),
        Variant(
            needs={"conversations": "messages"},
            without=frozenset({"messages", "chosen", "rejected", "response", "label"}),
            adapter={
                "shape": "single",
                "columns": {"prompt": False, "response": "conversations"},
                "context": {"system": "system"},
                "carry": ["source"],
            },
            optional=frozenset({"context.system"}),
        ),
    )


@register_preset
class Alpaca(Preset):
    """tatsu-lab/alpaca (`instruction`, `input`, `output`) and databricks/databricks-dolly-15k (`instruction`, `context`, `response`)."""

    name = "alpaca"
    golden = True
    variants = (
        Variant(
            needs={"instruction": "text", "output": "text"},
            without=frozenset({"chosen", "rejected", "prompt"}),
            adapter={
                "shape": "single",
                "columns": {"prompt": "instruction", "response": "output"},
                "context": {"system": "system", "history": "history", "input": "input"},
            },
            optional=frozenset({"context.system", "context.history", "context.input"}),
        ),
        Variant(
            needs={"instruction": "text", "context": "text", "response": "text"},
            adapter={
                "shape": "single",
                "columns": {"prompt": "instruction", "response": "response", "task": "category"},
                "context": {"input": "context"},
            },
            optional=frozenset({"columns.task"}),
        ),
    )


@register_preset
class HHChosen(Preset):
    """The preferred responses of a preference file (Anthropic/hh-rlhf): the last turn of `chosen`; `rejected` is left out."""

    name = "hh_chosen"
    golden = True
    variants = (
        Variant(
            needs={"chosen": "response"},
            without=frozenset({"response", "output"}),
            adapter={"shape": "single", "columns": {"response": "chosen"}, "ignore": ["rejected"]},
        ),
    )

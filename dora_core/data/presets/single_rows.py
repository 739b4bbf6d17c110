"""Presets with one response per row: scored rows that are grouped by prompt, and unpaired approvals."""

from __future__ import annotations

from dora_core.data.presets.base import Preset, Variant, register_preset

_GOOD, _BAD = ("desirable", "thumbs_up", "\N{THUMBS UP SIGN}"), ("undesirable", "thumbs_down", "\N{THUMBS DOWN SIGN}")
_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


@register_preset
class Helpsteer2(Preset):
    """nvidia/HelpSteer2 and nvidia/HelpSteer: five attributes per response, rows of one prompt grouped.

    Later turns are in the prompt's text, as `<extra_id_1>Assistant`: parsed. The reward is `helpfulness`; the others are carried. For a
    weighted sum write `label: {scores: [helpfulness, …], weights: […]}`.
    """

    name = "helpsteer2"
    variants = (
        Variant(
            needs={"prompt": "any", "response": "text", **dict.fromkeys(_ATTRIBUTES, "number")},
            adapter={
                "shape": "rows",
                "messages": {"templated": "parse"},
                "label": {"scores": ["helpfulness"]},
                "carry": list(_ATTRIBUTES[1:]),
            },
        ),
    )


@register_preset
class BeaverTails(Preset):
    """PKU-Alignment/BeaverTails: `is_safe` approves of a response, for harmlessness alone; its kinds of harm are carried."""

    name = "beavertails"
    variants = (
        Variant(
            needs={"prompt": "text", "response": "text", "is_safe": "scalar"},
            without=frozenset(_ATTRIBUTES),
            adapter={"shape": "unpaired", "label": {"column": "is_safe", "true": [True], "false": [False]}, "carry": ["category"]},
        ),
    )


@register_preset
class Kto(Preset):
    """TRL's unpaired format (trl-lib/kto-mix-14k: `prompt`, `completion`, `label`), and LLaMA-Factory's (`messages`, `label`;
    `kto_tag` beside its Alpaca or ShareGPT columns)."""

    name = "kto"
    variants = (
        Variant(
            needs={"prompt": "any", "completion": "response", "label": "approval"},
            adapter={
                "shape": "unpaired",
                "columns": {"response": "completion"},
                "label": {"column": "label", "true": [True, *_GOOD], "false": [False, *_BAD]},
            },
        ),
        Variant(
            needs={"instruction": "text", "output": "text", "kto_tag": "approval"},
            adapter={
                "shape": "unpaired",
                "columns": {"prompt": "instruction", "response": "output"},
                "context": {"system": "system", "history": "history", "input": "input"},
                "label": {"column": "kto_tag", "true": [True], "false": [False]},
            },
            optional=frozenset({"context.system", "context.history", "context.input"}),
        ),
        Variant(
            needs={"conversations": "messages", "kto_tag": "approval"},
            adapter={
                "shape": "unpaired",
                "columns": {"response": "conversations"},
                "context": {"system": "system"},
                "label": {"column": "kto_tag", "true": [True], "false": [False]},
            },
            optional=frozenset({"context.system"}),
        ),
        Variant(
            needs={"messages": "messages", "label": "approval"},
            without=frozenset({"prompt", "chosen", "rejected", "rejected_response"}),
            adapter={
                "shape": "unpaired",
                "columns": {"response": "messages"},
                "context": {"system": "system"},
                "label": {"column": "label", "true": [True], "false": [False]},
            },
            optional=frozenset({"context.system"}),
        ),
    )

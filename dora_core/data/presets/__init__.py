"""Presets: one class per published schema. Start reading at ``base.py``; a user adds one through ``DORA_PLUGINS`` like a loss."""

from dora_core.data.presets import golden, lists, pairs, single_rows, trees, two_answers
from dora_core.data.presets.base import (
    PRESETS,
    Expanded,
    Preset,
    Variant,
    as_text,
    expand,
    find_preset,
    recognise,
    register_preset,
    registered_presets,
)

__all__ = [
    "PRESETS",
    "Expanded",
    "Preset",
    "Variant",
    "as_text",
    "expand",
    "find_preset",
    "golden",
    "lists",
    "pairs",
    "recognise",
    "register_preset",
    "registered_presets",
    "single_rows",
    "trees",
    "two_answers",
]

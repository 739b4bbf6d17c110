"""Presets: one class per published schema. Start reading at ``base.py``; a user adds one through ``DORA_PLUGINS`` like a loss.

A module of this folder registers its presets where it is imported, which happens here.
"""

from importlib import import_module
from pkgutil import iter_modules

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

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "PRESETS",
    "Expanded",
    "Preset",
    "Variant",
    "as_text",
    "expand",
    "find_preset",
    "recognise",
    "register_preset",
    "registered_presets",
]

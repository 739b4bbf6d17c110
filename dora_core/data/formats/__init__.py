"""Formats of inputs, one file each. A new format is a new file here; ``base.py`` describes what it has to define."""

from dora_core.data.formats._compression import COMPRESSED
from dora_core.data.formats._looks import Look, look_at
from dora_core.data.formats.base import AUTO, DEFAULT_SPLIT, File, Format, Location, Reader, find_formats, headline, neighbours

FORMATS: dict[str, Format] = find_formats(__name__, __path__)
"""Every format by the name that `format` in the configuration accepts."""

__all__ = [
    "AUTO",
    "COMPRESSED",
    "DEFAULT_SPLIT",
    "FORMATS",
    "File",
    "Format",
    "Location",
    "Look",
    "Reader",
    "headline",
    "look_at",
    "neighbours",
]

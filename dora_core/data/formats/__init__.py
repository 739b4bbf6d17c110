"""Formats of inputs, one file each. A new format is a new file here; ``base.py`` describes what it has to define."""

from dora_core.data.formats.base import AUTO, File, Format, Location, Reader, find_formats, headline, neighbours

FORMATS: dict[str, Format] = find_formats(__name__, __path__)
"""Every format by the name that `format` in the configuration accepts."""

__all__ = ["AUTO", "FORMATS", "File", "Format", "Location", "Reader", "headline", "neighbours"]

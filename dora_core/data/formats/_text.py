"""Check of a text file's encoding."""

from __future__ import annotations

import codecs

from dora_core.errors import DataError


def refuse_utf16(start: bytes, name: str) -> None:
    """Refuse a text that starts with the mark of UTF-16: every format here is UTF-8.

    Raises:
        DataError: the first bytes are such a mark.
    """
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{name} is UTF-16; text files are read as UTF-8", hint="convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE")

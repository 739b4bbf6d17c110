"""Bytes of a text file as they are written inside its compression, and the check of its encoding."""

from __future__ import annotations

import codecs
import io
import lzma
from typing import TYPE_CHECKING, BinaryIO, cast

from dora_core.errors import DataError

if TYPE_CHECKING:
    from dora_core.data.formats.base import File


def open_bytes(file: File) -> BinaryIO:
    """The content of a file, decompressed by its ending: .gz, .bz2 and .zst by Arrow, .xz by Python."""
    if file.path.lower().endswith(".xz"):
        return cast(BinaryIO, io.BufferedReader(lzma.LZMAFile(file.filesystem.open_input_stream(file.path, compression=None))))
    compression = next((name for ending, name in _COMPRESSIONS.items() if file.path.lower().endswith(ending)), None)
    return cast(BinaryIO, io.BufferedReader(file.filesystem.open_input_stream(file.path, compression=compression)))


def refuse_utf16(start: bytes, name: str) -> None:
    """Refuse a text that starts with the mark of UTF-16: every format here is UTF-8.

    Raises:
        DataError: the first bytes are such a mark.
    """
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{name} is UTF-16; text files are read as UTF-8", hint="convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE")


_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
COMPRESSED = (*_COMPRESSIONS, ".xz")
"""Endings of compression that come after the ending of a format."""

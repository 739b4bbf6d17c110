"""Bytes of a text file as they are written inside its compression."""

from __future__ import annotations

import io
import lzma
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from dora_core.data.formats.base import File

_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
COMPRESSED = (*_COMPRESSIONS, ".xz")
"""Endings of compression that come after the ending of a format."""


def open_bytes(file: File) -> BinaryIO:
    """The content of a file, decompressed by its ending: .gz, .bz2 and .zst by Arrow, .xz by Python."""
    if file.path.lower().endswith(".xz"):
        return cast(BinaryIO, io.BufferedReader(lzma.LZMAFile(file.filesystem.open_input_stream(file.path, compression=None))))
    compression = next((name for ending, name in _COMPRESSIONS.items() if file.path.lower().endswith(ending)), None)
    return cast(BinaryIO, io.BufferedReader(file.filesystem.open_input_stream(file.path, compression=compression)))

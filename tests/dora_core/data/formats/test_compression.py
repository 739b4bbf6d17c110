"""Bytes of text files: every compression by its ending."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow.fs import LocalFileSystem

from dora_core.data.formats._compression import COMPRESSED, open_bytes
from dora_core.data.formats.base import File

TEXT = '{"prompt": "Wie reinige ich Wolle? 水"}\n'.encode() * 500
PACKED = {"": TEXT, ".gz": gzip.compress(TEXT), ".bz2": bz2.compress(TEXT), ".xz": lzma.compress(TEXT), ".zst": None}


def packed(ending: str) -> bytes:
    content = PACKED[ending]
    return content if content is not None else pa.compress(TEXT, codec="zstd", asbytes=True)


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("name", ["rows.jsonl", "ROWS.JSONL"])
def test_content_is_the_same_in_every_compression(ending: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}{ending.upper() if name.isupper() else ending}"
    path.write_bytes(packed(ending))
    with open_bytes(File(str(path), LocalFileSystem(), str(path))) as stream:
        assert stream.readline() + stream.read() == TEXT


def test_every_compression_is_tested() -> None:
    assert set(COMPRESSED) == PACKED.keys() - {""}

"""Formats recognised by their first bytes, for messages."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sqlite3
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from dora_core.data.formats import File, Look, look_at
from tests.dora_core.data.written_inputs import ROWS, refused

LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def look(tmp_path: Path, content: bytes, name: str = "a.bin") -> Look | None:
    path = tmp_path / name
    path.write_bytes(content)
    return look_at(File(name, pafs.LocalFileSystem(), str(path)))


def parquet() -> bytes:
    pq.write_table(pa.Table.from_pylist(ROWS), sink := io.BytesIO())
    return sink.getvalue()


@pytest.mark.parametrize(
    ("content", "format"),
    [
        (LINES, "jsonl"),
        (LINES * 1000, "jsonl"),
        (b"\xef\xbb\xbf" + LINES, "jsonl"),
        (json.dumps(ROWS).encode(), "json"),
        (json.dumps({"data": ROWS * 1000}).encode(), "json"),
        (json.dumps(ROWS, indent=2).encode(), "json"),
        (b"a,b\n1,2\n3,4\n", "csv"),
        (b'a\tb\n"1\n2"\t2\n', "csv"),
        (b"a;b\n1;2\n", "csv"),
        (parquet(), "parquet"),
    ],
)
def test_contents_are_recognised(tmp_path: Path, content: bytes, format: str) -> None:
    found = look(tmp_path, content)
    assert found is not None and found.format == format and found.hint == f"set format: {format}"


@pytest.mark.parametrize(
    "content", [b"", b"plain text\nof lines\n", b"\0\1\2", b"prompt: p\n- yaml\n", b"\x1f\x8bbroken", "grüße".encode("utf-16")]
)
def test_nothing_is_seen_where_nothing_is(tmp_path: Path, content: bytes) -> None:
    found = look(tmp_path, content)
    assert found is None or found.format is None


@pytest.mark.parametrize(
    ("name", "compress"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", lambda b: pa.compress(b, "zstd", asbytes=True))],
)
def test_compressed_content_is_seen_through_its_ending(tmp_path: Path, name: str, compress: object) -> None:
    assert callable(compress)
    found = look(tmp_path, compress(LINES), f"a{name}")
    assert found is not None and found.format == "jsonl"
    found = look(tmp_path, compress(LINES), "a.jsonl")
    assert found is not None and "compressed data (JSON lines)" in found.text and found.hint == f"let its name end with {name}"
    error = refused(tmp_path / "a.jsonl")
    assert "is not a JSONL file: it looks like" in error.message and name in error.hint


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"<!doctype html><html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"PK\x03\x04rest", "ZIP archive"),
    ],
)
def test_other_kinds_of_file_get_a_next_step(tmp_path: Path, content: bytes, text: str) -> None:
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        (tmp_path / name).write_bytes(content)
        error = refused(tmp_path / name, source="m")
        assert text in error.message and error.hint, name


def test_a_database_is_recognised(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "a.jsonl")
    connection.execute("CREATE TABLE a (b TEXT)")
    connection.commit()
    connection.close()
    assert refused(tmp_path / "a.jsonl").hint == "set data.train[0].format: sqlite"

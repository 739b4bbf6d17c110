"""Look of a file: the format its first bytes show, for messages about a file that is not of the format it was taken for."""

from __future__ import annotations

import bz2
import csv
import io
import json
import lzma
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dora_core.data.formats.base import File


HEAD_BYTES = 1 << 16
SAMPLE_LINES = 5

_MAGIC = [(b"PAR1", "a Parquet file", "parquet"), (b"ARROW1", "an Arrow or Feather file", "arrow")]
_MAGIC += [(b"\xff\xff\xff\xff", "an Arrow stream", "arrow"), (b"SQLite format 3\0", "a SQLite database", "sqlite")]
_OTHER = [
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook", "unpack it, or export it as CSV"),
    (b"version https://git-lfs", "a Git LFS pointer, not the data itself", "fetch the data: git lfs pull"),
    (b"%PDF", "a PDF document", "give the data itself"),
    (b"<", "an HTML or XML page", "a download may have failed: fetch the data again"),
    (b"\x89HDF", "an HDF5 file", "convert it to Parquet"),
]


class Look(NamedTuple):
    """A description for messages, the format's name where there is one, and the next step."""

    text: str
    format: str | None
    hint: str


def look_at(file: File) -> Look | None:
    """The look of a file; None where its first bytes show nothing.

    Raises:
        OSError: the file cannot be read.
    """
    with file.filesystem.open_input_stream(file.path, compression=None) as stream:
        head = stream.read(HEAD_BYTES)
    for magic, name, start in _DECOMPRESSED:
        if head.startswith(magic):
            inner = _look(_unpacked(head, start))
            ending = {"gzip": ".gz", "bzip2": ".bz2", "Zstandard": ".zst", "xz": ".xz"}[name]
            if file.path.lower().endswith(ending):
                return inner
            text = f"{name}-compressed data" + (f" ({inner.text})" if inner else "")
            return Look(text, None, f"let its name end with {ending}")
    return _look(head)


def _look(head: bytes) -> Look | None:
    for magic, text, format in _MAGIC:
        if head.startswith(magic):
            return _known(text, format)
    for magic, text, hint in _OTHER:
        if head.lstrip().startswith(magic):
            return Look(text, None, hint)
    complete = len(head) < HEAD_BYTES
    text = head.decode("utf-8-sig", "replace").lstrip()
    if "\0" in text:
        return None
    if text.startswith(("[", "{")):
        return _json_look(text, complete)
    return _table_look(text, complete)


def _json_look(text: str, complete: bool) -> Look | None:
    lines = [line for line in text.splitlines() if line.strip()]
    if text.startswith("{") and len(lines) > 1 and all(_is_object(line) for line in lines[: min(2, len(lines) - (not complete))]):
        return _known("JSON lines", "jsonl")
    if text.startswith("["):
        return _known("a JSON array", "json") if text[1:].lstrip()[:1] in {"{", "]", ""} else None
    rest = text[1:].lstrip()
    return _known("one JSON document", "json") if rest[:1] in {'"', "}"} and (len(lines) > 1 or not complete or _is_object(text)) else None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _table_look(text: str, complete: bool) -> Look | None:
    """A table of text: the same number of columns, at least two, in the first rows."""
    for delimiter, name in ((",", "CSV"), ("\t", "TSV"), (";", "CSV with semicolons")):
        try:
            rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row]
        except csv.Error:
            continue
        rows = rows[: min(SAMPLE_LINES, len(rows) - (not complete))]
        if len(rows) > 1 and len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows) and all(len(c) <= 64 for c in rows[0]):
            return _known(f"{name} (columns {', '.join(rows[0][:6])})", "csv")
    return None


def _known(text: str, format: str) -> Look:
    return Look(text, format, f"set format: {format}")


def _unpacked(head: bytes, start: Callable[[], Callable[[bytes], bytes]]) -> bytes:
    """The first bytes inside compressed ones; empty where they are damaged."""
    try:
        return start()(head)[:HEAD_BYTES]
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError):
        return b""


def _zstd() -> Callable[[bytes], bytes]:
    import pyarrow as pa

    def read(head: bytes) -> bytes:
        out = b""
        with pa.CompressedInputStream(pa.BufferReader(head), "zstd") as stream:
            try:
                while len(out) < HEAD_BYTES and (more := stream.read(1 << 12)):
                    out += more
            except OSError:  # the head ends in the middle of a frame
                pass
        return out

    return read


_DECOMPRESSED: list[tuple[bytes, str, Callable[[], Callable[[bytes], bytes]]]] = [
    (b"\x1f\x8b", "gzip", lambda: zlib.decompressobj(31).decompress),
    (b"BZh", "bzip2", lambda: bz2.BZ2Decompressor().decompress),
    (b"\x28\xb5\x2f\xfd", "Zstandard", _zstd),
    (b"\xfd7zXZ\0", "xz", lambda: lzma.LZMADecompressor().decompress),
]

"""The rows of one file: Parquet, JSON lines or a saved dataset. What cannot be read is a :class:`Problem` in its place.

Text is UTF-8, and nothing is guessed: ``json.loads`` would take bytes for UTF-16 where they look like it.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from dora_core.config.method import DataSource
from dora_core.data.records import Problem, Reason
from dora_core.errors import DataError, did_you_mean

PROBE_LINES = 1000  # JSON lines looked at to learn which columns a file has
Format = Literal["parquet", "jsonl", "datasets", "hub"]
UNREADABLE = (ValueError, ArithmeticError, LookupError)
"""What Arrow raises for a value without a Python counterpart: text that is not UTF-8 (Parquet does not guarantee it), a time beyond
year 9999, an unknown time zone, a struct with one name twice."""


class Location(NamedTuple):
    """Where the bytes of a file are, or which dataset name was meant."""

    format: Format
    uri: str  # as the user wrote it, plus the path below a folder
    filesystem: pafs.FileSystem | None = None
    path: str = ""


class Reader(Protocol):
    columns: list[str]
    ragged: bool  # a row may hold fields that `columns` does not list

    def rows(self, columns: Mapping[str, str], batch_rows: int) -> Iterator[tuple[int, Any]]: ...


class ParquetReader:
    ragged = False

    def __init__(self, at: Location):
        # Where the writer left checksums, a flipped bit is an error and no other text.
        self._file = pq.ParquetFile(at.filesystem.open_input_file(at.path), page_checksum_verification=True)
        self.columns = self._file.schema_arrow.names

    def rows(self, columns: Mapping[str, str], batch_rows: int) -> Iterator[tuple[int, Any]]:
        batches = self._file.iter_batches(batch_size=batch_rows, columns=sorted(set(columns.values())))
        yield from _number(batches, columns)


class DatasetReader:
    """A saved ``datasets`` directory, or a dataset name at a pinned commit (memory-mapped, never loaded whole)."""

    ragged = False

    def __init__(self, source: DataSource, place: str, revision: str | None):
        import datasets

        try:
            loaded = datasets.load_from_disk(source.path) if revision is None else datasets.load_dataset(source.path, revision=revision)
        except Exception as error:  # a damaged folder raises anything, and the hub client's network errors share no base class
            which, hint = "", "the folder is damaged or incomplete: save it again"
            if revision is not None:
                which = f" at {revision[:12]}"
                hint = "check the name and revision; without a network it must be in the local Hugging Face cache, or give a file"
            raise DataError(f"{place}.path: dataset {source.path!r}{which} cannot be loaded: {headline(error)}", hint=hint) from error
        if isinstance(loaded, datasets.DatasetDict):
            if source.split not in loaded:
                raise DataError(f"{place}.split: {source.path} has no split {source.split!r}", hint=did_you_mean(source.split, loaded))
            loaded = loaded[source.split]
        self._dataset = loaded.with_format("arrow")
        self.columns = loaded.column_names

    def rows(self, columns: Mapping[str, str], batch_rows: int) -> Iterator[tuple[int, Any]]:
        batches = self._dataset.select_columns(sorted(set(columns.values()))).iter(batch_size=batch_rows)
        yield from _number(map(_validated, batches), columns)


def _validated(batch: pa.Table) -> pa.Table:
    """A damaged file, mapped into memory, would end this process instead of raising."""
    batch.validate(full=True)
    return batch


def _number(batches: Iterator[pa.RecordBatch | pa.Table], columns: Mapping[str, str]) -> Iterator[tuple[int, Any]]:
    first = 0
    for batch in batches:
        try:
            rows = _python_rows(batch, columns)
        except UNREADABLE:
            rows = [_row_or_problem(batch, i, columns) for i in range(batch.num_rows)]
        yield from enumerate(rows, first)
        first += batch.num_rows


def _python_rows(batch: pa.RecordBatch | pa.Table, columns: Mapping[str, str]) -> list[Any]:
    values = zip(*(batch.column(name).to_pylist() for name in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def _row_or_problem(batch: pa.RecordBatch | pa.Table, index: int, columns: Mapping[str, str]) -> Any:
    row = {}
    for field, name in columns.items():
        try:
            row[field] = batch.column(name)[index].as_py()
        except UNREADABLE as error:
            is_text = isinstance(error, UnicodeDecodeError)
            detail = f"a text is not UTF-8 at byte {error.start}" if is_text else f"no Python value: {type(error).__name__}"
            return Problem(field, Reason.UNPARSABLE, detail)
    return row


class JsonLinesReader:
    ragged = True

    def __init__(self, at: Location):
        self._at = at
        names: dict[str, None] = {}
        for i, (_, line) in enumerate(islice(self._lines(), PROBE_LINES)):
            if i == 0 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise DataError(f"{at.uri} is UTF-16; JSON lines are UTF-8", hint="convert it: iconv -f UTF-16 -t UTF-8 FILE > FILE.jsonl")
            if i == 0 and line.lstrip().startswith(b"["):
                raise DataError(f"{at.uri} is a JSON array, not JSON lines", hint="convert it: jq -c '.[]' FILE > FILE.jsonl")
            if isinstance(row := _parse_line(line), dict):
                names |= dict.fromkeys(row)
        self.columns = list(names)
        if not names and any(True for _ in self._lines()):
            hint = 'each line must be an object such as {"prompt": …, "responses": […]}'
            raise DataError(f"{at.uri}: none of its first {PROBE_LINES} lines is a JSON object", hint=hint)

    def rows(self, columns: Mapping[str, str], batch_rows: int) -> Iterator[tuple[int, Any]]:
        for number, line in self._lines():
            row = _parse_line(line)
            yield number, {field: row.get(name) for field, name in columns.items()} if isinstance(row, dict) else row

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        with self._at.filesystem.open_input_stream(self._at.path, compression="detect") as stream:
            yield from ((number, line) for number, line in enumerate(io.BufferedReader(stream)) if line.strip())


def _parse_line(line: bytes) -> Any:
    try:
        return _DECODER.decode(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        return Problem("", Reason.UNPARSABLE, f"{error.msg}, column {error.colno}")
    except UnicodeDecodeError as error:
        return Problem("", Reason.UNPARSABLE, f"not UTF-8 at byte {error.start}")
    except _KeyTwice:
        return Problem("", Reason.UNPARSABLE, "an object has the same key twice")
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, nesting without end
        return Problem("", Reason.UNPARSABLE, type(error).__name__)


class _KeyTwice(ValueError):
    """Python would silently take the last value."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _KeyTwice
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def headline(error: BaseException) -> str:
    """Type and first line of an error of another library."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"

"""JSON lines in UTF-8, plain or compressed: one object per line, blank lines skipped. A line that is not valid is a problem of that row.

The encoding is never guessed: ``json.loads`` would take bytes for UTF-16 where they look like it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from dora_core.data.formats._compression import open_bytes
from dora_core.data.formats._text import refuse_utf16
from dora_core.data.formats.base import Format, Location
from dora_core.data.problems import Problem, Reason
from dora_core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

PROBE_LINES = 1000
"""Lines read at opening to learn the file's columns."""


class JsonLinesReader:
    """One file of JSON lines. Its positions count lines, blank ones included."""

    ragged = True
    notes: tuple[str, ...] = ()

    def __init__(self, at: Location):
        (self._file,) = at.files
        self.types: Mapping[str, pa.DataType] = {}
        names: dict[str, None] = {}
        first: Problem | None = None
        for i, (_, line) in enumerate(islice(self._lines(), PROBE_LINES)):
            if i == 0:
                refuse_utf16(line, at.name)
            if i == 0 and line.lstrip().startswith(b"["):
                raise DataError(f"{at.name} is a JSON array, not JSON lines", hint="set format: json")
            if isinstance(row := parse_line(line), dict):
                names |= dict.fromkeys(row)
            elif first is None and isinstance(row, Problem):
                first = row
        self.columns = list(names)
        if not names and any(True for _ in self._lines()):
            hint = 'each line must be an object such as {"prompt": …, "responses": […]}; set format: json if the file is one JSON document'
            found = f"; the first one: {first.detail}" if first else ""
            if first is not None and first.detail.startswith("not UTF-8"):
                hint = "convert it: iconv -f LATIN1 -t UTF-8 FILE > NEW_FILE, with its encoding; or unpack it, if it is compressed (again)"
            elif first is not None and first.detail == _TWICE:
                hint = "keep one of the values: Python would silently take the last one"
            raise DataError(f"{at.name}: none of its first {PROBE_LINES} lines is a JSON object{found}", hint=hint)

    def rows(self, columns: Mapping[str, str] | None, batch_rows: int) -> Iterator[tuple[int, Any]]:
        if columns is not None and not columns:
            yield from ((number, {}) for number, _ in self._lines())
            return
        for number, line in self._lines():
            row = parse_line(line)
            if columns is not None and isinstance(row, dict):
                row = {field: row.get(name) for field, name in columns.items()}
            yield number, row

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        with open_bytes(self._file) as stream:
            yield from ((number, line) for number, line in enumerate(stream) if line.strip())


def parse_line(line: bytes) -> Any:
    """The value of one line, or a :class:`Problem`."""
    try:
        return _DECODER.decode(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        return Problem("", Reason.UNPARSABLE, f"{error.msg}, column {error.colno}")
    except UnicodeDecodeError as error:
        return Problem("", Reason.UNPARSABLE, f"not UTF-8 at byte {error.start}")
    except _DuplicateKey:
        return Problem("", Reason.UNPARSABLE, _TWICE)
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, nesting without end
        return Problem("", Reason.UNPARSABLE, type(error).__name__)


_TWICE = "an object has the same key twice"


class _DuplicateKey(ValueError):
    """A key occurs twice in an object. Python would silently take the last value."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _DuplicateKey
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)

FORMAT = Format("jsonl", "JSONL file", JsonLinesReader, suffixes=(".jsonl", ".ndjson"), family="json", compressible=True)

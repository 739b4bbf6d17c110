"""JSON documents in UTF-8, plain or compressed: an array of objects, an object with one such array, or JSON lines in a ``.json`` file.

Read one value at a time, whatever the size of the file; an object around the array is scanned once at opening, to see that no second array
of objects is in it. Positions count the values of the array from 0. A row with a fault that does not hide the next row (a key twice,
bytes that are not UTF-8) is a problem of that row; text that is not JSON refuses the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from dora_core.data.formats._compression import open_bytes
from dora_core.data.formats._json_scanner import Scanner
from dora_core.data.formats._text import refuse_utf16
from dora_core.data.formats.base import DEFAULT_SPLIT, Format, Location, Reader
from dora_core.data.formats.json_lines import JsonLinesReader, parse_line
from dora_core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

PROBE_ROWS = 1000
"""Rows read at opening to learn the columns."""
_MESSAGE_KEYS = {"role", "from", "content", "value"}


class JsonArrayReader:
    """The rows of one array: the document itself, or one field of it."""

    ragged = True

    def __init__(self, at: Location, field: str | None, notes: tuple[str, ...] = ()):
        (self._file,) = at.files
        self._name, self._field, self.notes = at.name, field, notes
        self.types: Mapping[str, pa.DataType] = {}
        names: dict[str, None] = {}
        probed = list(islice(self._values(), PROBE_ROWS))
        for row in probed:
            if isinstance(row, dict):
                names |= dict.fromkeys(row)
        self.columns = list(names)
        if probed and not names:
            raise DataError(
                f"{at.name}: none of the first {PROBE_ROWS} values of its array is an object",
                hint='each value must be an object such as {"prompt": …, "responses": […]}',
            )

    def rows(self, columns: Mapping[str, str] | None, batch_rows: int) -> Iterator[tuple[int, Any]]:
        for number, row in enumerate(self._values()):
            if columns is not None and isinstance(row, dict):
                row = {field: row.get(name) for field, name in columns.items()}
            yield number, row

    def _values(self) -> Iterator[Any]:
        with open_bytes(self._file) as stream:
            scanner = Scanner(stream, self._name)
            if self._field is None:
                yield from scanner.items()
                scanner.end()
                return
            for key in scanner.members():
                if key == self._field:
                    yield from scanner.items()
                else:
                    _skip(scanner)
            scanner.end()


def open_json(at: Location) -> Reader:
    """The reader for what the document is: an array, an object around an array, or JSON lines.

    Raises:
        DataError: it is none of these, or holds several arrays of objects.
    """
    (file,) = at.files
    with open_bytes(file) as stream:
        start = stream.read(2)
    refuse_utf16(start, at.name)
    with open_bytes(file) as stream:
        scanner = Scanner(stream, at.name)
        first = scanner.peek()
        alone = False
        try:
            arrays = _arrays_of_objects(scanner, at.name) if first == "{" else []
            lines = first != "[" and (not arrays or scanner.peek() != "")
            alone = first == "{" and scanner.peek() == ""
        except DataError:
            if not _mostly_lines(at):
                raise
            lines = True  # the first line of JSON lines may be a bad row
    if alone and not (arrays and not lines):
        _refuse_table_by_columns(at)
    if lines:
        _refuse_split(at, [])
        return JsonLinesReader(at)
    if first == "[":
        _refuse_split(at, [])
        return JsonArrayReader(at, None)
    if len(arrays) == 1:
        _refuse_split(at, arrays)
        return JsonArrayReader(at, arrays[0], (f"{at.name}: its rows are in the field {arrays[0]!r}",))
    if at.split in arrays:
        rest = ", ".join(name for name in arrays if name != at.split)
        return JsonArrayReader(at, at.split, (f"{at.name}: its rows are in the field {at.split!r}; left out: {rest}",))
    raise DataError(
        f"{at.name} is an object with several lists of rows: {', '.join(arrays)}",
        hint=f"set {at.place}.split to one of them: {', '.join(arrays)}",
    )


def _refuse_table_by_columns(at: Location) -> None:
    """Refuse a document that is one object with a table in it by columns or by an index, as pandas and ``datasets.to_dict`` write it.

    Raises:
        DataError: names the export that is read.
    """
    (file,) = at.files
    with open_bytes(file) as stream:
        document = parse_line(stream.read())
    values = list(document.values()) if isinstance(document, dict) else []
    if len(values) < 2:
        return
    by_columns = all(isinstance(value, list) and len(value) == len(values[0]) > 1 for value in values)
    by_index = all(isinstance(value, dict) and value for value in values) and bool(set.intersection(*(set(value) for value in values)))
    split = isinstance(document, dict) and {"columns", "data"} <= document.keys() and isinstance(document["data"], list)
    if by_columns or by_index or split:
        raise DataError(
            f"{at.name} is one object that holds a table by its columns or index, and a row is read as an object",
            hint="write one object per row: pandas `df.to_json(FILE, orient='records', lines=True)`, datasets `data.to_json(FILE)`",
        )


def _refuse_split(at: Location, arrays: list[str]) -> None:
    if at.split != DEFAULT_SPLIT and at.split not in arrays:
        raise DataError(
            f"{at.place}.split: {at.name} has no splits, so there is no {at.split!r}", hint=f"leave {at.place}.split out to read all rows"
        )


def _arrays_of_objects(scanner: Scanner, name: str) -> list[str]:
    """Names of the fields of an object that are lists of objects other than messages; the object is read to its end."""
    found = list[str]()
    for key in scanner.members():
        if key in found:
            raise DataError(f"{name} holds the field {key!r} twice", hint="keep one of them")
        first = _skip(scanner)
        if isinstance(first, dict) and not (first.keys() and first.keys() <= _MESSAGE_KEYS | {"name", "weight"}):
            found.append(key)
    return found


def _mostly_lines(at: Location) -> bool:
    """Whether most of the first lines are objects."""
    (file,) = at.files
    with open_bytes(file) as stream:
        lines = list(islice((line for line in stream if line.strip()), 20))
    return sum(isinstance(parse_line(line), dict) for line in lines) > len(lines) / 2


def _skip(scanner: Scanner) -> Any:
    """Read over a value; return the first value of an array."""
    if scanner.peek() != "[":
        scanner.value()
        return None
    items = scanner.items()
    first = next(items, None)
    for _ in items:
        pass
    return first


FORMAT = Format("json", "JSON file", open_json, suffixes=(".json",), family="json", compressible=True, options=frozenset({"split"}))

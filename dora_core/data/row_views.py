"""Readers in front of readers: partition columns added, rows outside a slice left out, rows counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from dora_core.data.formats import Reader
from dora_core.data.problems import Problem, Reason

if TYPE_CHECKING:
    import pyarrow as pa


def count_rows(reader: Reader, batch_rows: int = 4096) -> int:
    """Rows of a reader, bad ones included; reads no column."""
    return sum(1 for _ in reader.rows({}, batch_rows))


class SlicedReader:
    """The rows ``start`` to ``stop`` of a reader, with their positions in the file."""

    def __init__(self, reader: Reader, start: int, stop: int | None):
        self._reader, self._start, self._stop = reader, start, stop
        self.columns, self.types, self.ragged, self.notes = reader.columns, reader.types, reader.ragged, reader.notes

    def rows(self, columns: Mapping[str, str] | None, batch_rows: int) -> Iterator[tuple[int, Any]]:
        yield from islice(self._reader.rows(columns, batch_rows), self._start, self._stop)


class PartitionedReader:
    """A reader with the partitions of its path (``source=human/…``) as columns of every row: text, null for Hive's default.

    A file may hold a partition's column itself; a row that then disagrees with the path is a problem.
    """

    def __init__(self, reader: Reader, partitions: Mapping[str, str | None]):
        import pyarrow as pa

        self._reader, self._partitions = reader, partitions
        self._added = [key for key in partitions if key not in reader.columns]
        self.columns: list[str] = [*reader.columns, *self._added]
        self.types: Mapping[str, pa.DataType] = {**reader.types, **dict.fromkeys(self._added, pa.string())}
        self.ragged, self.notes = reader.ragged, reader.notes

    def rows(self, columns: Mapping[str, str] | None, batch_rows: int) -> Iterator[tuple[int, Any]]:
        constant = self._added if columns is None else [field for field, name in columns.items() if name in self._added]
        fixed = {field: self._partitions[field if columns is None else columns[field]] for field in constant}
        inner = None if columns is None else {field: name for field, name in columns.items() if field not in fixed}
        given = self._partitions.keys() - set(self._added)
        checked = {key: key for key in given} if inner is None else {f: name for f, name in inner.items() if name in given}
        for position, row in self._reader.rows(inner, batch_rows):
            yield position, self._completed(row, fixed, checked) if isinstance(row, dict) else row

    def _completed(self, row: dict[str, Any], fixed: dict[str, str | None], checked: Mapping[str, str]) -> dict[str, Any] | Problem:
        for field, key in checked.items():
            value = row.get(field)
            if (None if value is None else str(value)) != self._partitions[key]:
                return Problem(field, Reason.WRONG_TYPE, f"differs from the partition {key}={self._partitions[key]} in the file's path")
        if any(row.get(field) is not None for field in fixed):  # a ragged row may hold the key after all
            return Problem(next(iter(fixed)), Reason.WRONG_TYPE, "is a partition in the file's path and a field of the row")
        return row | fixed

"""Rows of Arrow batches as Python values. A value without a Python counterpart costs its row, not the batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dora_core.data.problems import Problem, Reason

if TYPE_CHECKING:
    import pyarrow as pa

UNREADABLE = (ValueError, ArithmeticError, LookupError)
"""Errors of Arrow for a value without a Python counterpart: text that is not UTF-8 (Parquet does not guarantee it), a time beyond
year 9999, an unknown time zone, a struct with one name twice."""


class UnreadableValues(Problem):
    """The problem of a row of which some values have no Python counterpart. ``row``: the others; ``fields``: of all that have none."""

    row: dict[str, Any]
    fields: frozenset[str]


def numbered_rows(batches: Iterable[pa.RecordBatch | pa.Table], columns: Mapping[str, str] | None) -> Iterator[tuple[int, Any]]:
    """(position, row) of every row of ``batches``, counted from 0.

    Args:
        columns: field → column of the batches; a row is a dict of these fields, or a :class:`~dora_core.data.problems.Problem`. None:
            every column under its own name.
    """
    first = 0
    for batch in batches:
        wanted = {name: name for name in batch.schema.names} if columns is None else columns
        try:
            rows = _python_rows(batch, wanted)
        except UNREADABLE:
            rows = [_row_or_problem(batch, i, wanted) for i in range(batch.num_rows)]
        yield from enumerate(rows, first)
        first += batch.num_rows


def _python_rows(batch: pa.RecordBatch | pa.Table, columns: Mapping[str, str]) -> list[Any]:
    if not columns:
        return [{} for _ in range(batch.num_rows)]
    values = zip(*(batch.column(name).to_pylist() for name in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def _row_or_problem(batch: pa.RecordBatch | pa.Table, index: int, columns: Mapping[str, str]) -> Any:
    row, found = dict[str, Any](), dict[str, str]()
    for field, name in columns.items():
        try:
            row[field] = batch.column(name)[index].as_py()
        except UNREADABLE as error:
            utf8 = isinstance(error, UnicodeDecodeError)
            found[field] = f"a text is not UTF-8 at byte {error.start}" if utf8 else f"no Python value: {type(error).__name__}"
    if not found:
        return row
    problem = UnreadableValues(next(iter(found)), Reason.UNPARSABLE, next(iter(found.values())))
    problem.row, problem.fields = row, frozenset(found)
    return problem

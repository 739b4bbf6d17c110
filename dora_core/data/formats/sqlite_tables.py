"""SQLite databases: the rows of `query`, or of the only table. Opened read-only; statements other than a query are refused.

Positions count the rows of the result from 0. Left out: databases of remote stores, and those with unwritten changes in a ``-wal`` file,
which the fingerprint would not cover.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dora_core.data.formats.base import Format, Location, headline
from dora_core.data.problems import Problem, Reason
from dora_core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


class _NotText(bytes):
    """A text that is not UTF-8."""


class SqliteReader:
    """The result of one query."""

    ragged = False

    def __init__(self, at: Location):
        import pyarrow.fs as pafs

        (file,) = at.files
        self._path, self._name, self._place = file.path, at.name, at.place
        self.types: Mapping[str, pa.DataType] = {}  # SQLite types values, not columns
        if not isinstance(file.filesystem, pafs.LocalFileSystem):
            raise DataError(f"{at.name}: a SQLite database is read from a local disk only", hint="copy it here, or export it as Parquet")
        if os.path.exists(f"{self._path}-wal") and os.path.getsize(f"{self._path}-wal"):
            raise DataError(
                f"{at.name} has changes that are not written into it yet ({os.path.basename(self._path)}-wal)",
                hint="close the program that uses it, or run: sqlite3 FILE 'PRAGMA wal_checkpoint(TRUNCATE)'",
            )
        self.notes: tuple[str, ...] = ()
        self._query = at.query or self._only_table()
        with self._result() as cursor:
            if cursor.description is None:
                raise DataError(f"{at.place}.query: is not a query", hint="start it with SELECT")
            self.columns: list[str] = [column[0] for column in cursor.description]

    def rows(self, columns: Mapping[str, str] | None, batch_rows: int) -> Iterator[tuple[int, Any]]:
        wanted = {name: name for name in self.columns} if columns is None else columns
        places = {field: self.columns.index(name) for field, name in wanted.items()}
        with self._result() as cursor:
            cursor.arraysize = batch_rows
            for number, values in enumerate(cursor):
                row = {field: values[place] for field, place in places.items()}
                bad = next((field for field, value in row.items() if isinstance(value, _NotText)), None)
                yield number, row if bad is None else Problem(bad, Reason.UNPARSABLE, "a text is not UTF-8")

    def _only_table(self) -> str:
        with self._connection() as connection:
            listed = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%' ORDER BY name"
            tables = [str(name) for (name,) in connection.execute(listed)]
        if len(tables) != 1:
            there = f"holds several tables: {', '.join(tables)}" if tables else "holds no table"
            example = _select(tables[0]) if tables else "SELECT … FROM …"
            raise DataError(f"{self._name} {there}", hint=f"set {self._place}.query, e.g. {example}")
        self.notes = (f"{self._name}: all rows of its table {tables[0]!r}",)
        return _select(tables[0])

    @contextmanager
    def _result(self) -> Iterator[sqlite3.Cursor]:
        with self._connection() as connection:
            connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY)
            with closing(connection.execute(self._query)) as cursor:
                yield cursor

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(f"file:{quote(self._path)}?mode=ro&immutable=1", uri=True)) as connection:
                connection.text_factory = _text
                yield connection
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise DataError(
                f"cannot read {self._name}: {headline(error)}",
                hint=f"check that it is a SQLite database and that {self._place}.query is one SELECT over its tables",
            ) from error


def _text(value: bytes) -> str | _NotText:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return _NotText(value)


def _select(table: str) -> str:
    quoted = table.replace('"', '""')
    return f'SELECT * FROM "{quoted}"'


FORMAT = Format("sqlite", "SQLite database", SqliteReader, suffixes=(".sqlite", ".sqlite3", ".db"), options=frozenset({"query"}))

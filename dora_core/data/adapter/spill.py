"""Rows kept on disk until all rows are read, in a temporary SQLite file, so that memory stays flat."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PRAGMAS = ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536", "temp_store = FILE", "locking_mode = EXCLUSIVE")


@contextmanager
def spill_file() -> Iterator[sqlite3.Connection]:
    """A connection to a temporary SQLite file, deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="dora-adapter-") as folder:
        connection = sqlite3.connect(Path(folder) / "rows.sqlite", isolation_level=None)
        try:
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.close()

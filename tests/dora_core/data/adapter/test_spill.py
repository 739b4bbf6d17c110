"""Rows on disk: a database that is there while it is used, and gone afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from dora_core.data.adapter.spill import spill_file


def path_of(connection) -> Path:
    return Path(connection.execute("PRAGMA database_list").fetchone()[2])


def test_rows_come_back_and_the_file_is_deleted():
    with spill_file() as connection:
        file = path_of(connection)
        connection.execute("CREATE TABLE rows (position INTEGER, text TEXT)")
        connection.executemany("INSERT INTO rows VALUES (?, ?)", ((i, f"row {i}") for i in range(1000)))
        assert file.exists()
        assert connection.execute("SELECT count(*), max(text) FROM rows").fetchone() == (1000, "row 999")
    assert not file.exists() and not file.parent.exists()


def test_the_file_is_deleted_after_an_error():
    with pytest.raises(RuntimeError, match="in between"), spill_file() as connection:
        file = path_of(connection)
        raise RuntimeError("in between")
    assert not file.parent.exists()


def test_two_files_are_apart():
    with spill_file() as first, spill_file() as second:
        assert path_of(first) != path_of(second)

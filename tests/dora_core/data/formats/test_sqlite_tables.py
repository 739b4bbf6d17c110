"""SQLite databases."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dora_core.data.inputs import open_files
from dora_core.data.problems import Problem, Reason
from tests.dora_core.data.written_inputs import input_at, refused


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "a.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE pairs (prompt TEXT, chosen TEXT, rejected TEXT, score REAL)")
        connection.executemany("INSERT INTO pairs VALUES (?, 'x', 'y', ?)", [("a", 1.5), ("b", None)])
        connection.execute("INSERT INTO pairs VALUES (CAST(x'ff' AS TEXT), 'x', 'y', 2)")
        connection.commit()
    return path


def add(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def rows(path: Path, **options: str) -> list[tuple[int, Any]]:
    return [row for file in open_files(input_at(path, **options), {}) for row in file.rows()]


def test_the_only_table_is_read_and_named(database: Path) -> None:
    (file,) = open_files(input_at(database), {})
    assert list(file.rows()) == [
        (0, {"prompt": "a", "chosen": "x", "rejected": "y", "score": 1.5}),
        (1, {"prompt": "b", "chosen": "x", "rejected": "y", "score": None}),
        (2, Problem("prompt", Reason.UNPARSABLE, "a text is not UTF-8")),
    ]
    assert file.notes == (f"{database}: all rows of its table 'pairs'",)


def test_several_tables_need_a_query(database: Path) -> None:
    add(database, 'CREATE TABLE "other ""table""" (x INTEGER)')
    error = refused(database)
    assert 'holds several tables: other "table", pairs' in error.message
    assert error.hint == 'set data.train[0].query, e.g. SELECT * FROM "other ""table"""'
    assert rows(database, query="SELECT prompt AS q FROM pairs WHERE score > 1 AND prompt = 'a'") == [(0, {"q": "a"})]
    add(database, "DROP TABLE pairs")
    add(database, 'DROP TABLE "other ""table"""')
    assert "holds no table" in refused(database).message


@pytest.mark.parametrize(
    "query",
    ["DELETE FROM pairs", "SELECT * FROM none", "ATTACH 'x.sqlite' AS x", "PRAGMA journal_mode=WAL", "SELECT 1; SELECT 2", "nonsense"],
)
def test_only_one_query_that_reads_is_allowed(database: Path, query: str) -> None:
    before = database.read_bytes()
    error = refused(database, query=query)
    assert f"cannot read {database}" in error.message and "data.train[0].query is one SELECT" in error.hint
    assert database.read_bytes() == before and len(list(database.parent.iterdir())) == 1


def test_unwritten_changes_are_refused(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("INSERT INTO pairs VALUES ('c', 'x', 'y', 1)")
        connection.commit()
        error = refused(database)
    assert "changes that are not written into it yet (a.sqlite-wal)" in error.message and "wal_checkpoint" in error.hint
    assert len(rows(database)) == 4


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("prompt,chosen\na,b\nc,d\n")
    assert "is not a SQLite database: it looks like CSV" in refused(tmp_path / "a.db").message
    (tmp_path / "b.db").write_bytes(b"SQLite format 3\0" + b"\1" * 500)
    assert f"cannot read {tmp_path}/b.db" in refused(tmp_path / "b.db").message

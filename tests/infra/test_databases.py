"""Addresses of SQLite files with any characters in their path, as SQLAlchemy reads them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from infra.databases import sqlite_file, sqlite_url

NAMES = ["plain", "with space", "what is this?", "a?b?c", "50%", "100%41", "a#b", "caf\u00e9", "\u9879\u76ee", "a&b=c", "file:x?"]


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_where_its_path_says(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    file = folder / "a.db"
    url = sqlite_url(file)
    engine = create_engine(url)
    with engine.begin() as base:
        base.execute(text("create table t (x)"))
    engine.dispose()
    assert [path.name for path in tmp_path.iterdir()] == [name] and [path.name for path in folder.iterdir()] == ["a.db"]
    with closing(sqlite3.connect(file)) as base:
        assert base.execute("select name from sqlite_master").fetchall() == [("t",)]
    assert sqlite_file(url) == file and sqlite_file(sqlite_url(file, "aiosqlite")) == file


def test_other_addresses_have_no_file() -> None:
    for url in ("http://h:5000", "postgresql+psycopg://u@h/mlflow", "sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true"):
        assert sqlite_file(url) is None
    assert sqlite_file("sqlite:////abs/m.db?timeout=5") == Path("/abs/m.db") and sqlite_file("sqlite:///m.db") == Path("m.db")
    assert sqlite_url(Path("/abs/m.db")) == "sqlite:////abs/m.db", "the form by which earlier releases know their files"

"""MLflow's SQLite file appears whole, whoever is killed."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from infra.tracking.mlflow_client import mlflow_client
from infra.tracking.mlflow_database import ensure_database

MAKE = (
    "import sys; from pathlib import Path; from infra.tracking.mlflow_database import ensure_database; ensure_database(Path(sys.argv[1]))"
)


def change(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as base, base:
        for statement in statements:
            base.execute(statement)


HALF_MADE = {
    "no version yet": ["drop table alembic_version"],
    "within a migration": ["create table _alembic_tmp_jobs (id int)"],
    "an earlier version": ["update alembic_version set version_num = '451aebb31d03'"],
    "tables missing": ["drop table jobs", "update alembic_version set version_num = '451aebb31d03'"],
}


@pytest.mark.parametrize("name", HALF_MADE)
def test_a_half_made_file_without_content_is_made_anew(
    name: str, empty_mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db"))
    change(file, *HALF_MADE[name])
    (tmp_path / "mlflow.db-journal").write_bytes(b"")
    made: list[Path] = []

    def make(target: Path) -> None:
        made.append(target)

    monkeypatch.setattr("infra.tracking.mlflow_database._make", make)  # its seconds are spent once, in the test of a kill
    ensure_database(file)
    assert made == [file]


@pytest.mark.parametrize(
    "content",
    [
        "insert into runs (run_uuid, experiment_id) values ('r', 0)",
        "insert into registered_models (name, workspace) values ('m', 'default')",
        "insert into experiments (name, workspace) values ('mine', 'default')",
    ],
)
def test_a_file_with_content_is_never_replaced(content: str, empty_mlflow_database: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db"))
    change(file, "pragma foreign_keys = off", content, *HALF_MADE["an earlier version"])
    before = file.read_bytes()
    ensure_database(file)
    assert file.read_bytes() == before
    (tmp_path / "other.db").write_bytes(b"not a database at all, but something of the user's" * 100)
    ensure_database(tmp_path / "other.db")
    assert (tmp_path / "other.db").read_bytes().startswith(b"not a database")


@pytest.mark.component
def test_a_process_that_is_killed_while_it_makes_the_file_leaves_none(tmp_path: Path) -> None:
    file, new = tmp_path / "home" / "mlflow.db", tmp_path / "home" / ".mlflow.db.new"
    first = subprocess.Popen([sys.executable, "-c", MAKE, str(file)])
    while first.poll() is None and not (new.exists() and new.stat().st_size > 200_000):
        time.sleep(0.005)
    first.kill()
    first.wait()
    assert new.exists() and not file.exists(), "killed in the middle"
    two = [subprocess.Popen([sys.executable, "-c", MAKE, str(file)]) for _ in range(2)]  # at once: one makes it, the other waits
    assert [process.wait() for process in two] == [0, 0]
    assert not new.exists() and mlflow_client(f"sqlite:///{file}").search_experiments()[0].name == "Default"

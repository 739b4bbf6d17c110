"""MLflow's SQLite file appears whole, whoever is killed, and its paths follow the home."""

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
from infra.tracking.mlflow_database import ensure_database, follow_home, local_path
from infra.tracking.tracker import Tracker

MAKE = (
    "import sys; from pathlib import Path; from infra.tracking.mlflow_database import ensure_database; ensure_database(Path(sys.argv[1]))"
)


def rows(file: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(file)) as base:
        return base.execute(query).fetchall()


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


# --------------------------------------------------------------------------------------------------------- a moved home


def logged(home: Path, name: str) -> list[str]:
    """A run with an artifact and one that is registered, as a flow leaves them; returns the notes."""
    tracker = Tracker.open(f"sqlite:///{home / 'mlflow.db'}", "demo", home / "spool", home / "mlartifacts")
    run = tracker.start_run(name)
    (home / "note.txt").write_text(name)
    tracker.log_files(run, {"note.txt": home / "note.txt"})
    tracker.finish(run, "FINISHED")
    return tracker.close(60, 240)


@pytest.fixture
def home(empty_mlflow_database: Path, tmp_path: Path) -> Path:
    home = tmp_path / "old 50% #1"
    (home / "store" / "align" / "d").mkdir(parents=True)
    shutil.copy(empty_mlflow_database, home / "mlflow.db")
    assert logged(home, "before") == []
    client = mlflow_client(f"sqlite:///{home / 'mlflow.db'}")
    client.create_registered_model("m")
    client.create_model_version("m", str(home / "store" / "align" / "d"), tags={"dora.model_uri": str(home / "store" / "align" / "d")})
    return home


@pytest.mark.parametrize("way", ["moved", "copied"])
def test_artifacts_and_models_follow_the_home(way: str, home: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    (shutil.move if way == "moved" else shutil.copytree)(home, new)
    before = sorted(home.rglob("*"))
    notes = logged(new, "after")
    assert len(notes) == 1 and f"the home was at {home}" in notes[0]
    assert sorted(home.rglob("*")) == before, "nothing new below the old place"
    client = mlflow_client(f"sqlite:///{new / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("demo")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    for run in found.values():
        place = local_path(run.info.artifact_uri)
        assert place is not None and place.is_relative_to(new) and (place / "note.txt").read_text() == run.info.run_name
    version = client.get_model_version("m", "1")
    assert version.source == version.tags["dora.model_uri"] == str(new / "store" / "align" / "d")
    assert logged(new, "again") == [], "told once"


def test_a_database_elsewhere_is_left_alone(home: Path, tmp_path: Path) -> None:
    """Several homes may share it; then the run says where its artifacts go."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shutil.copy(home / "mlflow.db", shared / "mlflow.db")
    other = tmp_path / "other"
    other.mkdir()
    assert follow_home(shared / "mlflow.db", other / "mlartifacts") == []
    tracker = Tracker.open(f"sqlite:///{shared / 'mlflow.db'}", "demo", other / "spool", other / "mlartifacts")
    tracker.finish(tracker.start_run("r"), "FINISHED")
    (note,) = tracker.close(60, 240)
    assert note.startswith(f"artifacts of the experiment demo go to {home}/mlartifacts/demo")


def test_updates_that_wait_follow_the_home(home: Path, tmp_path: Path) -> None:
    """A file that waits to be sent, and the journal of a stage, are found at the new place."""
    away = home / "mlflow.db"
    away.rename(home / "aside.db")
    away.mkdir()  # MLflow cannot be opened
    tracker = Tracker.open(f"sqlite:///{away}", "demo", home / "spool", home / "mlartifacts")
    run = tracker.start_run("waits")
    (home / "note.txt").write_text("waits")
    tracker.log_files(run, {"note.txt": home / "note.txt"})
    tracker.finish(run, "FINISHED")
    assert "updates for" in tracker.close(0.5, 2)[0]
    away.rmdir()
    (home / "aside.db").rename(away)
    new = tmp_path / "new"
    shutil.move(home, new)
    logged(new, "after")
    client = mlflow_client(f"sqlite:///{new / 'mlflow.db'}")
    runs = {run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("demo").experiment_id])}
    place = local_path(runs["waits"].info.artifact_uri)
    assert place is not None and (place / "note.txt").read_text() == "waits" and runs["waits"].info.status == "FINISHED"

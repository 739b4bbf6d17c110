"""Places in MLflow's database follow a home that was moved."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from infra.tracking.mlflow_client import mlflow_client
from infra.tracking.mlflow_database import local_path
from infra.tracking.moved_home import follow_home
from infra.tracking.tracker import Tracker


def log(home: Path, name: str) -> str:
    """Log a file as a run does; returns MLflow's id of the run."""
    tracker = Tracker.open(f"sqlite:///{home}/mlflow.db", "case", home / "outbox", home / "mlartifacts")
    run = tracker.start_run(name)
    tracker.log_files(run, {"note.txt": Path(__file__)})
    tracker.finish(run, "FINISHED")
    assert tracker.close(60, 240) == []
    found = tracker.mlflow_id(run)
    assert found is not None
    return found


def test_artifacts_of_old_and_new_runs_are_below_the_home_of_now(tmp_path: Path, mlflow_sqlite: str) -> None:
    old, new = tmp_path / "old home", tmp_path / "new"
    old.mkdir()
    shutil.copy(mlflow_sqlite.removeprefix("sqlite:///"), old / "mlflow.db")
    before = log(old, "before the move")
    old.rename(new)
    after = log(new, "after the move")
    assert not old.exists(), "nothing is written to the folder that was moved away"
    client = mlflow_client(f"sqlite:///{new}/mlflow.db")
    for run in (before, after):
        assert [file.path for file in client.list_artifacts(run)] == ["note.txt"]
        assert (new / "mlartifacts" / "case" / run / "artifacts" / "note.txt").is_file()
    assert follow_home(new / "mlflow.db", new / "mlartifacts") == [], "idempotent"


def test_models_that_an_earlier_release_registered_by_their_path_follow(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("create table experiments (artifact_location text)")
        database.execute("create table model_versions (source text)")
        places = ["/a%20b/home/mlartifacts/demo", "s3://bucket/mlartifacts/demo", "mlflow-artifacts:/0", "./mlruns/0", "/a b/homes/x/y"]
        database.executemany("insert into experiments values (?)", [(f"file://{places[0]}",), *((place,) for place in places[1:])])
        database.executemany("insert into model_versions values (?)", [("/a b/home/store/align/1/model",), ("/a b/home2/store/x",)])
    assert follow_home(tmp_path / "mlflow.db", tmp_path / "mlartifacts") == ["/a b/home"]
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        found = [place for (place,) in database.execute("select artifact_location from experiments")]
        sources = [place for (place,) in database.execute("select source from model_versions")]
    assert found == [f"{(tmp_path / 'mlartifacts' / 'demo').as_uri()}", *places[1:]]
    assert sources == [f"{tmp_path}/store/align/1/model", "/a b/home2/store/x"]


def test_databases_that_are_not_a_homes_own_are_left_alone(tmp_path: Path) -> None:
    assert follow_home(tmp_path / "none.db", tmp_path / "mlartifacts") == []
    sqlite3.connect(tmp_path / "empty.db").close()
    assert follow_home(tmp_path / "empty.db", tmp_path / "mlartifacts") == []
    assert follow_home(tmp_path / "empty.db", tmp_path / "bucket") == []


# ------------------------------------------------------------------------------------ copies, shared databases, the outbox


def note(tracker: Tracker, home: Path, name: str) -> list[str]:
    """A run with an artifact; returns the notes of the tracker."""
    run = tracker.start_run(name)
    (home / "note.txt").write_text(name)
    tracker.log_files(run, {"note.txt": home / "note.txt"})
    tracker.finish(run, "FINISHED")
    return tracker.close(60, 240)


def opened(home: Path, database: Path | None = None) -> Tracker:
    return Tracker.open(f"sqlite:///{database or home / 'mlflow.db'}", "case", home / "spool", home / "mlartifacts")


@pytest.fixture
def home(empty_mlflow_database: Path, tmp_path: Path) -> Path:
    home = tmp_path / "old 50% #1"
    home.mkdir()
    shutil.copy(empty_mlflow_database, home / "mlflow.db")
    return home


def test_a_copy_of_a_home_writes_nothing_into_the_original(home: Path, tmp_path: Path) -> None:
    assert note(opened(home), home, "before") == []
    new = tmp_path / "new"
    shutil.copytree(home, new)
    before = sorted(home.rglob("*"))
    assert note(opened(new), new, "after") == []
    assert sorted(home.rglob("*")) == before
    client = mlflow_client(f"sqlite:///{new / 'mlflow.db'}")
    for run in client.search_runs([client.get_experiment_by_name("case").experiment_id]):
        place = local_path(run.info.artifact_uri)
        assert place is not None and place.is_relative_to(new) and (place / "note.txt").read_text() == run.info.run_name


def test_a_database_that_homes_share_is_left_alone_and_the_run_says_where_artifacts_go(home: Path, tmp_path: Path) -> None:
    assert note(opened(home), home, "one") == []
    shared, other = tmp_path / "shared" / "mlflow.db", tmp_path / "other"
    shared.parent.mkdir()
    other.mkdir()
    shutil.copy(home / "mlflow.db", shared)
    assert follow_home(shared, other / "mlartifacts") == []
    (said,) = note(opened(other, shared), other, "two")
    assert said.startswith(f"artifacts of the experiment case go to {home}/mlartifacts/case")


def test_updates_that_wait_follow_the_home(home: Path, tmp_path: Path) -> None:
    """A file that waits to be sent is found at the new place, by the same MLflow: here its server of before is away."""
    tracker = Tracker.open("http://127.0.0.1:9", "case", home / "spool", history=f"sqlite:///{home / 'mlflow.db'}")
    run = tracker.start_run("waits")
    (home / "note.txt").write_text("waits")
    tracker.log_files(run, {"note.txt": home / "note.txt"})
    tracker.finish(run, "FINISHED")
    assert "updates for" in tracker.close()[0]
    new = tmp_path / "new"
    shutil.move(home, new)
    assert note(opened(new), new, "after") == []
    client = mlflow_client(f"sqlite:///{new / 'mlflow.db'}")
    runs = {run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("case").experiment_id])}
    place = local_path(runs["waits"].info.artifact_uri)
    assert place is not None and (place / "note.txt").read_text() == "waits" and runs["waits"].info.status == "FINISHED"

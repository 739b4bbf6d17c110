"""A session opens a run and closes it in its manifest and in MLflow, however it ends."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dora_core.errors import DataError
from flows.planning.planned_stage import Plan
from flows.run_record import read_record, write_record
from flows.running.observer import Observer
from flows.running.session import Session, git_sha
from flows.running.supervise import run_plan
from infra.tracking.mlflow_client import mlflow_client
from tasks.runtime.stage import StageOutput, execute
from tasks.stages.registry import STAGES
from tests.flows.running.planned import plan_of, register
from tests.flows.running.sessions import FLOW_RUN, Watching, opened


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_sqlite: str) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DORA_MLFLOW_URI", mlflow_sqlite)
    for name in ("PREFECT_API_URL", "DORA_PREFECT_API_URL", "DORA_STORE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    register(monkeypatch, lambda spec, context: None)


def tags_of(session: Session, uri: str) -> tuple[str, dict[str, Any]]:
    run = mlflow_client(uri).get_run(session.tracker.mlflow_id(session.parent_run))
    return run.info.status, run.data.tags


def test_a_run_that_ends_well_is_complete_everywhere(mlflow_sqlite: str) -> None:
    watching = Watching()
    with opened(plan_of(1), watching) as session:
        assert session.on_server and watching.calls == [("planned", session.manifest.run_id)]
        assert session.manifest.run.status == "running"
    found = read_record(session.store, session.manifest.run_id)
    assert found is not None and found.status == "completed" and found.error is None and found.finished is not None
    status, tags = tags_of(session, mlflow_sqlite)
    assert status == "FINISHED" and tags["dora.status"] == "completed" and tags["dora.run_id"] == session.manifest.run_id
    assert tags["prefect.flow_run_id"] == FLOW_RUN.id and not [tag for tag in tags if tag.startswith("dora.digest")]


@pytest.mark.parametrize(
    ("error", "status", "tracked"), [(DataError("no", hint="h"), "failed", "FAILED"), (KeyboardInterrupt(), None, "KILLED")]
)
def test_a_run_that_does_not_end_well_keeps_its_error(error: BaseException, status: str | None, tracked: str, mlflow_sqlite: str) -> None:
    with pytest.raises(type(error)), opened(plan_of(1)) as session:
        raise error
    found = session.manifest.run
    assert found.status == (status or found.status) != "completed" and found.error is not None
    ended, tags = tags_of(session, mlflow_sqlite)
    assert ended == tracked and tags["dora.status"] == found.status and tags["dora.error"] == found.error.message
    assert not list(session.store.local_root.glob("**/latest*.json"))


def test_a_night_without_news_tracks_nothing_again(monkeypatch: pytest.MonkeyPatch, mlflow_sqlite: str) -> None:
    register(monkeypatch, lambda spec, context: StageOutput(rows=1, metrics={"kl": 0.5}))
    plan, watching = plan_of(1), Watching()
    (stage,) = plan.stages
    with opened(plan) as first:
        execute(stage.spec, STAGES["toy"].run, first.store)
    quiet = replace(plan, stages=(replace(stage, cached=True, reason="cached: as before"),))
    with opened(quiet, watching) as second:
        run_plan(second)
    found = read_record(second.store, second.manifest.run_id)
    assert found is not None and found.status == "completed" and [entry.state for entry in found.stages] == ["cached"]
    assert second.parent_run is None and second.warnings == []
    assert watching.calls == [("planned", found.run_id), ("finished", "toy 1", "cached")]
    client = mlflow_client(mlflow_sqlite)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert len(client.search_runs(experiments)) == 1, "the first night's"
    page = "http://127.0.0.1:5000/#/experiments/1/runs/1"
    before = first.manifest.run.links.evolve(mlflow=page)
    write_record(first.store, first.manifest.run.evolve(links=before, run_id=second.manifest.run_id))  # the last run with this plan
    with opened(quiet) as third:
        run_plan(third)
    assert third.manifest.run.links.mlflow == page, "that of the numbers it found"


def test_an_observer_that_fails_is_a_warning_once() -> None:
    class Failing(Observer):
        def started(self, stage: Any) -> None:
            raise ConnectionError("away")

    plan = plan_of(1)
    with opened(plan, Failing()) as session:
        session.notify("started", plan.stages[0])
        session.notify("started", plan.stages[0])
    assert session.warnings == ["progress could not be shown: ConnectionError: away"]


def test_notes_of_the_plan_are_warnings_from_the_start() -> None:
    plan = plan_of(1)
    with opened(Plan(plan.project, plan.stages, {}, notes=("no champion",))) as session:
        assert session.warnings == ["no champion"]


def test_a_stage_is_owned_once_and_found_done_after_it_is_there() -> None:
    plan = plan_of(1)
    (stage,) = plan.stages
    with opened(plan) as session:
        with session.owning(stage, lambda why: None) as is_done:
            assert not is_done
        session.store.mark_done(session.store.folder("toy", stage.digest), {"stage": "toy", "digest": stage.digest})
        with session.owning(stage, lambda why: None) as is_done:
            assert is_done
        assert session.shared_job(stage) is None, "it needs no job"


def test_the_commit_is_that_of_the_code() -> None:
    here = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    assert git_sha().removesuffix("-dirty") == (done.stdout.strip() if done.returncode == 0 else "")


def test_the_manifest_is_json_with_the_links(mlflow_sqlite: str) -> None:
    with opened(plan_of(1)) as session:
        pass
    (file,) = session.store.local_root.glob("runs/*/run.json")
    written = json.loads(file.read_text())
    assert session.url is None, "a database has no pages"
    assert written["links"]["mlflow"] == mlflow_sqlite and written["status"] == "completed"

"""A run's manifest as a model: what it reads, keeps and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.run_record import EndedRun, ProcessRecord, RunRecord, StageRecord, read_record, read_records, write_record
from infra.processes import RecordedProcess
from infra.store.store import Store

FIRST_RELEASE: dict[str, Any] = {
    "run_id": "demo-20260101-010101-aaaa",
    "project": "demo",
    "status": "completed",
    "started": 1.0,
    "stages": [
        {"stage": "ingest", "label": "ingest", "digest": "a" * 64, "state": "ran", "seconds": 2.0, "submission_id": None},
        {"stage": "align", "label": "align", "digest": None, "state": "pending", "seconds": None, "submission_id": None},
    ],
}
WITHOUT_VERSION: dict[str, Any] = {
    "run_id": "demo-20261130-122522-bc5d",
    "flow": "realign",
    "name": "demo · data.parquet · dpo · dora λ=auto",
    "project": "demo",
    "config": {"project": "demo", "align": {"objective": {"lambda": "auto"}}},
    "flow_run_id": "0007c4d3-a244-49a0-84d7-d13a2280d659",
    "process": {"host": "vm", "pid": 3190, "created": 1796041505.59, "boot": "045a9a39", "since_boot": 241.6},
    "started": 1796041510.0,
    "finished": 1796041684.9,
    "status": "failed",
    "error": {"message": "stage align: no", "hint": "try"},
    "decision": None,
    "remark": None,
    "decided_by": None,
    "deadline": None,
    "tracker_run": "r1",
    "links": {"prefect": None, "mlflow": "sqlite:///mlflow.db", "ray": None},
    "stages": [
        {
            "stage": "align",
            "label": "r1 align",
            "round": 1,
            "digest": "b" * 64,
            "reason": "runs: first time",
            "state": "failed",
            "seconds": None,
            "mlflow_run_id": "m1",
            "submission_id": "dora-align-b-1",
            "notes": ["a warning"],
        }
    ],
}


ADDED: dict[str, Any] = {"waited": 0.0, "command": "", "promotion": None}
"""Keys that later releases write, at their defaults."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def write(store: Store, content: dict[str, Any]) -> RunRecord:
    store.write_json(f"runs/{content['run_id']}/run.json", content)
    record = read_record(store, content["run_id"])
    assert record is not None
    return record


def test_a_manifest_of_the_first_release_is_read(store: Store) -> None:
    run = write(store, FIRST_RELEASE)
    assert (run.flow, run.process, run.finished, run.links.prefect) == ("", None, None, None)
    assert run.stage("align").digest == "" and not run.stage("align").is_finished
    assert (run.ran, run.notes, run.submissions) == (1, [], set())


def test_what_is_written_keeps_every_key_and_shape(store: Store) -> None:
    run = write(store, WITHOUT_VERSION)
    write_record(store, run)
    assert store.read_json(f"runs/{run.run_id}/run.json") == WITHOUT_VERSION | ADDED | {"version": 1}
    assert EndedRun(run, ["w"]).to_json() == WITHOUT_VERSION | ADDED | {"warnings": ["w"]}, "what --json prints has no version"


def test_keys_of_a_later_release_survive_a_change(store: Store) -> None:
    later = WITHOUT_VERSION | {"later": [1], "version": 2, "stages": [WITHOUT_VERSION["stages"][0] | {"cost": 3}]}
    run = write(store, later)
    write_record(store, run.evolve(status="cancelled"))
    assert store.read_json(f"runs/{run.run_id}/run.json") == later | ADDED | {"status": "cancelled"}


def test_a_state_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError):
        StageRecord(stage="align", label="align", digest="d", state="done")  # type: ignore[arg-type]


def test_places_submissions_and_notes_are_those_of_its_stages(store: Store) -> None:
    run = write(store, WITHOUT_VERSION)
    assert run.places == [f"align/{'b' * 64}"] and run.submissions == {"dora-align-b-1"} and run.notes == ["r1 align: a warning"]


def test_a_process_is_recognised_again() -> None:
    process = RecordedProcess.current()
    recorded = ProcessRecord.model_validate(ProcessRecord.of(process, "here").model_dump()).recorded()
    assert recorded.alive() and recorded.pid == process.pid


def test_half_written_manifests_are_left_out_and_the_newest_comes_first(store: Store) -> None:
    for number in "12":
        write(store, FIRST_RELEASE | {"run_id": f"p-{number}"})
    store.local("runs/p-3").mkdir(parents=True)
    store.local("runs/p-3/run.json").write_text('{"run_id": ')
    assert [run.run_id for run in read_records(store)] == ["p-2", "p-1"]
    assert read_record(store, "p-3") is None


def test_the_time_of_a_run_leaves_out_what_it_waited_for_a_person() -> None:
    run = RunRecord(run_id="p-1", project="p", started=100.0, status="completed", stages=[])
    assert run.seconds == 0.0, "not ended"
    assert run.evolve(finished=4000.0, waited=3600.0).seconds == 300.0
    assert run.evolve(finished=90.0).seconds == 0.0, "the clock was set back"

"""Which runs are over, and that only what they left is ended."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Completed, Crashed, Paused, Pending, Running, State

from flows.deployment import deploy
from flows.deployment.deploy import Deployment
from flows.run_record import ProcessRecord
from flows.running import gpu_slots as limits
from flows.upkeep import reap
from infra.processes import RecordedProcess
from infra.settings import Settings
from infra.store.store import Store
from infra.tracking.mlflow_client import mlflow_client
from infra.tracking.tracker import Tracker
from tests.flows.killed_runs import GONE, process, write_manifest

CASES: list[tuple[str, dict[str, Any] | None, State | None, str | None]] = [
    ("it runs here", process(True), Running(), None),
    ("it runs here and closes itself", process(True), Cancelled(), None),
    ("it was killed here", process(False), Running(), GONE),
    ("it was killed here while it was cancelled", process(False), Cancelling(), GONE),
    ("it was killed here, and there is no server", process(False), None, GONE),
    ("its worker has said so", process(False), Crashed(), "its flow run is Crashed"),
    ("it waits for a person", process(False), Paused(), None),
    ("it starts again soon", process(False), AwaitingRetry(), None),
    ("it starts elsewhere", process(False), Pending(), None),
    ("it runs elsewhere", process(True) | {"host": "elsewhere"}, Running(), None),
    ("it has ended elsewhere", process(True) | {"host": "elsewhere"}, Completed(), "its flow run is Completed"),
    ("nobody knows", None, None, None),
    ("an older version wrote it", None, Crashed(), "its flow run is Crashed"),
]


@pytest.mark.fault(7, 8)
@pytest.mark.parametrize(("recorded", "state", "why"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_run_is_over_only_if_somebody_knows(recorded: dict[str, Any] | None, state: State | None, why: str | None) -> None:
    assert reap.why_over(ProcessRecord.model_validate(recorded) if recorded else None, state) == why


# ------------------------------------------------------------------------------------------------ without a Prefect server


@pytest.mark.fault(8)
def test_a_sweep_ends_what_is_over_and_spares_the_job_that_a_live_run_watches(settings: Settings, ray: Any) -> None:
    write_manifest(settings, "dead", process(False), "dora-align-a-1", "dora-sft-b-1")
    write_manifest(settings, "live", process(True), "dora-align-a-1")
    mlflow = mlflow_client(settings.effective().mlflow_uri)
    experiment = mlflow.create_experiment("p")
    tracked = {run: mlflow.create_run(experiment, tags={"dora.run_id": run}).info.run_id for run in ("dead", "live")}
    looked = reap.sweep(settings, settings.effective(), dry_run=True)
    assert looked.runs == {"dead": GONE} and set(ray.jobs.values()) == {"RUNNING"}

    swept = reap.end_dead_runs(settings, settings.effective(), None)
    assert (swept.runs, swept.jobs, swept.mlflow_runs, swept.problems) == ({"dead": GONE}, ["dora-sft-b-1"], [tracked["dead"]], [])
    assert {run: mlflow.get_run(tracked[run]).info.status for run in tracked} == {"dead": "KILLED", "live": "RUNNING"}
    assert mlflow.get_run(tracked["dead"]).data.tags["dora.error"] == GONE
    assert ray.jobs == {"dora-align-a-1": "RUNNING", "dora-sft-b-1": "STOPPED"}
    store = Store(settings.store_uri)
    assert {run: store.read_json(f"runs/{run}/run.json")["status"] for run in ("dead", "live")} == {"dead": "cancelled", "live": "running"}
    assert reap.sweep(settings, settings.effective()).lines() == ["nothing is left over"]


@pytest.mark.fault(8, 12)
def test_what_cannot_be_ended_now_is_told_and_left_for_the_next_sweep(
    settings: Settings, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(settings, "dead", process(False), "dora-align-a-1")
    away = settings.model_copy(update={"ray_address": "http://127.0.0.1:9"})
    monkeypatch.setattr("infra.ray_jobs.STOP_PATIENCE", 0.1)
    swept = reap.end_dead_runs(away, away.effective(), None)
    assert swept.runs == {} and "dead: its process is gone, but it could not be ended: Ray at http://127.0.0.1:9" in swept.problems[0]
    assert reap.end_dead_runs(settings, settings.effective(), None).runs == {"dead": GONE}


class Prefect:
    """One flow run that runs, and what is set."""

    def __init__(self) -> None:
        self.run, self.set = SimpleNamespace(id=uuid4(), state=Running()), list[str]()

    def read_flow_run(self, _: UUID) -> SimpleNamespace:
        return self.run

    def read_task_runs(self, **_: Any) -> list[Any]:
        return []

    def set_flow_run_state(self, _: UUID, state: State, *, force: bool) -> None:
        self.set.append(state.name)


@pytest.mark.fault(7, 10)
def test_a_run_whose_mlflow_is_away_is_crashed_in_prefect_and_closed_by_a_later_sweep(settings: Settings, ray: Any) -> None:
    write_manifest(settings, "dead", process(False), "dora-align-a-1")
    prefect, places = Prefect(), settings.effective()
    swept = reap.end_dead_runs(settings, replace(places, mlflow_uri="http://127.0.0.1:9"), prefect)
    assert swept.runs == {} and "MLflow does not answer" in swept.problems[0] and prefect.set == ["Crashed"]
    assert ray.jobs["dora-align-a-1"] == "STOPPED"
    assert Store(settings.store_uri).read_json("runs/dead/run.json")["status"] == "running"
    assert reap.end_dead_runs(settings, places, None).runs == {"dead": GONE}


@pytest.mark.fault(7, 8)
def test_the_first_process_of_a_run_that_was_tried_again_does_not_end_the_second(settings: Settings, ray: Any) -> None:
    write_manifest(settings, "p-1", process(False), "dora-align-a-1")
    write_manifest(settings, "p-2", process(True), "dora-sft-b-1")
    prefect = Prefect()
    assert reap.end_dead_runs(settings, settings.effective(), prefect).runs == {"p-1": GONE}
    assert prefect.set == [] and ray.jobs == {"dora-align-a-1": "STOPPED", "dora-sft-b-1": "RUNNING"}


@pytest.mark.fault(10)
def test_a_sweep_sends_what_waits_for_mlflow(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "mlflow_history", lambda *_: "ours")  # the server's, which is away at first
    away = Tracker.open("http://127.0.0.1:9", "demo", settings.outbox, history="ours")
    away.finish(away.start_run("last night"), "FINISHED")
    away.close()
    there = settings.effective()
    [waiting] = reap.sweep(settings, replace(there, mlflow_uri="http://127.0.0.1:9")).lines()
    assert "2 MLflow updates" in waiting and "refused" in waiting
    assert reap.sweep(settings, there).lines() == ["nothing is left over"]
    client = mlflow_client(there.mlflow_uri)
    [run] = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    assert (run.info.run_name, run.info.status) == ("last night", "FINISHED") and not any((settings.outbox).iterdir())


# ----------------------------------------------------------------------------------------- on a real Prefect API


def manifest_of(
    client: SyncPrefectClient, settings: Settings, run_id: str, state: Any, child: subprocess.Popen[bytes] | None = None
) -> Any:
    """A run of ``child``, or of a process that has ended; returns its flow run."""

    @flow(name="realign")
    def realign() -> None: ...

    flow_run = client.create_flow_run(realign, name=run_id)
    client.set_flow_run_state(flow_run.id, state, force=True)
    process = {"host": socket.gethostname(), "created": time.time()}
    if child is None:
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        process |= {"pid": child.pid}
    else:
        process |= RecordedProcess.of(psutil.Process(child.pid), "flow").model_dump(exclude={"name", "log"})
    content = {
        "run_id": run_id,
        "project": "reaped",
        "flow_run_id": str(flow_run.id),
        "started": time.time(),
        "status": "running",
        "stages": [],
        "process": process,
    }
    Store(settings.store_uri).write_json(f"runs/{run_id}/run.json", content)
    return flow_run


def taken(client: SyncPrefectClient) -> int:
    return client.read_global_concurrency_limit_by_name(limits.LIMIT).active_slots


@pytest.mark.component
@pytest.mark.fault(8)
def test_a_sweep_tells_prefect_and_frees_what_nobody_holds(
    api: str, client: SyncPrefectClient, entries: list[Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy.deploy(api, pool="people", limit=1)
    settings = Settings()
    killed = manifest_of(client, settings, "killed", Running())
    cancelled = manifest_of(client, settings, "cancelled", Cancelling())
    client.update_global_concurrency_limit(limits.LIMIT, GlobalConcurrencyLimitUpdate(active_slots=1))

    swept = reap.sweep(settings, settings.effective())
    assert swept.runs == {"killed": "its process is gone", "cancelled": "its process is gone"}
    assert client.read_flow_run(killed.id).state_name == "Crashed"
    assert client.read_flow_run(cancelled.id).state_name == "Cancelled"
    assert swept.slots == 0 and taken(client) == 1, "a run that has just ended may still hold a lease"

    monkeypatch.setattr(reap, "LEASE_SECONDS", 0.0)
    assert reap.sweep(settings, settings.effective()).lines() == ["freed 1 slots of dora-gpus without a holder"]
    assert taken(client) == 0


@pytest.mark.component
@pytest.mark.fault(9, 11)
def test_a_run_that_does_not_hear_that_it_is_cancelled_is_stopped(
    api: str, client: SyncPrefectClient, entries: list[Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker's watch for cancellations has ended with a server that was away."""
    deploy.deploy(api, pool="people", limit=1)
    settings = Settings()
    with subprocess.Popen(["sleep", "60"]) as child:
        deaf = manifest_of(client, settings, "deaf", Cancelling(), child)
        assert reap.sweep(settings, settings.effective()).unheard == [] and child.poll() is None, "it may be about to stop"
        monkeypatch.setattr(reap, "UNHEARD_SECONDS", 0.0)
        swept = reap.sweep(settings, settings.effective())
        assert child.poll() is not None
    assert (swept.unheard, swept.runs) == (["deaf"], {"deaf": "its flow run is Cancelled"})
    assert client.read_flow_run(deaf.id).state_name == "Cancelled"


@pytest.mark.component
@pytest.mark.fault(8)
def test_a_run_that_its_worker_took_and_never_began_is_ended(
    api: str, client: SyncPrefectClient, entries: list[Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, taken = Settings(), {}
    for pool, kind in (("people", "process"), ("ships", "docker")):  # a container may have to wait for its image
        deploy.deploy(api, pool=pool, pool_type=kind)
        realign = client.read_deployment_by_name("realign/realign").id
        taken[pool] = client.create_flow_run_from_deployment(realign, name=f"taken by {pool}", state=Pending()).id
    assert reap.sweep(settings, settings.effective()).never_began == [], "its process may be about to start"
    monkeypatch.setattr(reap, "PENDING_LIMIT", timedelta())
    assert reap.sweep(settings, settings.effective()).never_began == ["taken by people"]
    assert {pool: client.read_flow_run(run).state_name for pool, run in taken.items()} == {"people": "Crashed", "ships": "Pending"}


@pytest.mark.component
def test_the_flow_says_what_it_did(api: str, client: SyncPrefectClient) -> None:
    state = reap.reap(return_state=True)
    assert state.is_completed() and state.message == "nothing is left over"

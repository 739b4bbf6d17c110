"""Deployments, slots and the reaper against a real Prefect API: one server process, no Ray."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, GlobalConcurrencyLimitUpdate
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Cancelling, Pending, Running, Scheduled, Suspended

from dora_core.errors import ConfigError, ServiceError
from flows.config.loading import load_config
from flows.deployment import automations, deploy
from flows.deployment.deploy import Deployment
from flows.planning.plan import build_plan
from flows.run_record import RunRecord, StageRecord, write_record
from flows.running import gpu_slots as limits
from flows.upkeep import gc, reap
from infra.prefect_api import own_prefect_api
from infra.processes import RecordedProcess
from infra.services import runs_at_a_time
from infra.settings import Settings, tool_environment
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages import ingest

pytestmark = pytest.mark.component

PATIENCE = 60.0


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Prefect API with an empty database."""
    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DORA_HOME", str(home))
        for name, value in tool_environment(Settings()).items():
            patch.setenv(name, value)
        with own_prefect_api(Settings()) as wait:
            wait()
            yield os.environ["PREFECT_API_URL"]


@pytest.fixture
def client(api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    monkeypatch.setenv("PREFECT_API_URL", api)
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    monkeypatch.setenv("DORA_MLFLOW_URI", f"sqlite:///{tmp_path.parent / 'mlflow.db'}")
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[Deployment]:
    """The declaration, to be changed by a test."""
    entries = [entry for entry in deploy.declared() if entry.name in ("realign", "realign-nightly")]
    monkeypatch.setattr(deploy, "declared", lambda: entries)
    return entries


# ---------------------------------------------------------------------------------------------------------- deployments


def test_deploying_again_changes_nothing_that_a_person_has_changed(api: str, client: SyncPrefectClient, entries: list[Deployment]) -> None:
    looked = deploy.deploy(api, pool="people", dry_run=True)
    assert looked.pool == ("people", "process", "created")
    with pytest.raises(ObjectNotFound):
        client.read_work_pool("people")

    done = deploy.deploy(api, pool="people")
    assert done.deployments == {"realign/realign": "created", "realign/realign-nightly": "created"}
    nightly = client.read_deployment_by_name("realign/realign-nightly")
    assert (nightly.parameters, nightly.work_pool_name) == ({"config_file": "nightly.yaml"}, "people")
    (schedule,) = nightly.schedules
    assert not schedule.active

    client.update_deployment_schedule(nightly.id, schedule.id, active=True)
    client.update_global_concurrency_limit(limits.LIMIT, GlobalConcurrencyLimitUpdate(limit=5))
    again = deploy.deploy(api, pool="people")
    assert (again.pool[2], again.limit) == ("unchanged", (limits.LIMIT, 5, "unchanged"))
    assert set(again.deployments.values()) == {"unchanged"}
    assert again.schedules["realign/realign-nightly"].endswith(", on")

    entries[1] = entries[1].model_copy(update={"schedules": [entries[1].schedules[0].model_copy(update={"cron": "0 4 * * *"})]})
    moved = deploy.deploy(api, pool="people", limit=1)
    assert moved.deployments == {"realign/realign": "unchanged", "realign/realign-nightly": "updated"}
    assert moved.limit == (limits.LIMIT, 1, "updated")
    (schedule,) = client.read_deployment_by_name("realign/realign-nightly").schedules
    assert (schedule.schedule.cron, schedule.active) == ("0 4 * * *", True)

    del entries[1]
    assert deploy.deploy(api, pool="people").deployments == {"realign/realign": "unchanged", "realign/realign-nightly": "removed"}
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name("realign/realign-nightly")


def test_the_api_refuses_a_bad_form(api: str, client: SyncPrefectClient, entries: list[Deployment]) -> None:
    deploy.deploy(api, pool="people")
    realign = client.read_deployment_by_name("realign/realign")
    with pytest.raises(PrefectHTTPStatusError, match="409") as refused:
        client.create_flow_run_from_deployment(realign.id, parameters={"training": {"learning_rate": -1}})
    assert "training.learning_rate" in refused.value.response.text
    accepted = client.create_flow_run_from_deployment(realign.id, parameters={"training": {"learning_rate": 1e-6}, "method": {}})
    assert accepted.parameters["training"] == {"learning_rate": 1e-6}


def test_a_pool_keeps_its_type(api: str, client: SyncPrefectClient, entries: list[Deployment]) -> None:
    made = deploy.deploy(api, pool="ships", pool_type="docker", image="dora-realign:1")
    assert made.pool == ("ships", "docker", "created")
    assert "prefect worker start --pool ships --type docker" in made.notes[0]
    template = client.read_work_pool("ships").base_job_template["variables"]["properties"]
    assert template["image"]["default"] == "dora-realign:1"
    assert deploy.deploy(api, pool="ships", image="dora-realign:2").pool == ("ships", "docker", "updated")
    with pytest.raises(ConfigError, match="of type docker, not process"):
        deploy.deploy(api, pool="ships", pool_type="process")
    with pytest.raises(ConfigError, match="without an image"):
        deploy.deploy(api, pool="fresh", image="dora-realign:2")


def test_prefects_own_command_accepts_the_file(api: str, client: SyncPrefectClient) -> None:
    deploy.deploy(api)  # creates the pool that the file names
    file = Path(deploy.__file__).parents[2] / "infra" / "prefect.yaml"
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("successfully created") == len(deploy.declared())


@pytest.mark.fault(8)
def test_upkeep_starts_while_every_other_place_is_taken(api: str, client: SyncPrefectClient) -> None:
    """A worker asks which runs it may start: as one that was here before `upkeep` does, after `dora deploy` has mended that."""
    deploy.deploy(api, pool="busy")
    reaper, realign = (client.read_deployment_by_name(name).id for name in ("reap/reap", "realign/realign"))
    client.delete_work_queue_by_id(client.read_work_queue_by_name("upkeep", "busy").id)
    client.update_deployment(reaper, DeploymentUpdate(work_pool_name="busy"))
    places = client.read_work_queue_by_name("default", "busy")
    assert places.concurrency_limit == runs_at_a_time(), "a pool that is new"
    client.update_work_queue(places.id, concurrency_limit=1)
    runs = [client.create_flow_run_from_deployment(deployment, state=Scheduled()) for deployment in (realign, realign, reaper)]

    def startable() -> set[UUID]:
        return {found.flow_run.id for found in client.get_scheduled_flow_runs_for_work_pool("busy")} & {run.id for run in runs}

    assert startable() == {runs[0].id}
    client.set_flow_run_state(runs[0].id, Pending())
    client.set_flow_run_state(runs[0].id, Running(name=limits.WAITING))
    assert startable() == set(), "it waits behind what waits for it"

    mended = deploy.deploy(api, pool="busy")
    assert (mended.upkeep, mended.deployments["reap/reap"], mended.deployments["realign/realign"]) == ("created", "updated", "unchanged")
    runs.append(client.create_flow_run_from_deployment(reaper, state=Scheduled()))
    assert startable() == {runs[3].id}
    client.set_flow_run_state(runs[0].id, Suspended())
    assert startable() == {runs[1].id, runs[3].id}, "a suspended run has no process"
    assert deploy.deploy(api, pool="busy").upkeep == "unchanged"
    assert client.read_work_queue(places.id).concurrency_limit == 1, "chosen by a person"


def test_automations_are_made_once_and_stay_switched_off(api: str, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    automations.install(api, "http://127.0.0.1:9/first")
    ours = [found for found in client.read_automations() if found.name.startswith(automations.PREFIX)]
    client.pause_automation(ours[0].id)
    again = automations.install(api, None)
    assert sorted(again) == sorted(f"{found.name}: unchanged" for found in ours) and len(ours) == 4
    monkeypatch.setattr(automations, "MISSED_HEARTBEATS", 4)
    assert [line.endswith(": updated") for line in automations.install(api, None)] == [False, True, False, False]
    assert [found.enabled for found in client.read_automations() if found.id == ours[0].id] == [False]


# ---------------------------------------------------------------------------------------------------------------- slots


HEAVY = SimpleNamespace(needs_ray=True, to_run=[])
LIGHT = SimpleNamespace(needs_ray=False, to_run=[])


class Run:
    """A flow run in a thread of its own that takes a slot, says so, and waits until it may end."""

    def __init__(self, name: str, plan: Any = HEAVY, error: BaseException | None = None):
        self.inside, self.may_end, self.plans = threading.Event(), threading.Event(), 0
        self.result: Any = None

        def build(*_: Any) -> Any:
            self.plans += 1
            return plan

        @flow(name="realign", flow_run_name=name)
        def run() -> None:
            with limits.gpu_slot(build) as planned:
                planned(None, None)
                self.inside.set()
                assert self.may_end.wait(PATIENCE)
                if error is not None:
                    raise error

        def start() -> None:
            with temporary_settings({PREFECT_API_URL: limits.Settings().effective().prefect_api_url}):
                self.result = run(return_state=True)

        self.thread = threading.Thread(target=start, daemon=True)
        self.thread.start()

    def end(self) -> Any:
        """Its final state."""
        self.may_end.set()
        self.thread.join(PATIENCE)
        return self.result


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)
    return value


def taken(client: SyncPrefectClient) -> int:
    return client.read_global_concurrency_limit_by_name(limits.LIMIT).active_slots


@pytest.mark.fault(16)
def test_a_second_run_waits_says_for_whom_and_plans_anew(api: str, client: SyncPrefectClient, entries: list[Deployment]) -> None:
    deploy.deploy(api, pool="people", limit=1)
    first = Run("first")
    assert first.inside.wait(PATIENCE) and taken(client) == 1
    light = Run("light", LIGHT)
    assert light.inside.wait(PATIENCE), "nothing heavy runs: no slot"
    assert light.end().is_completed()

    second = Run("second")
    waiting = until(lambda: next((run for run in limits.read_runs(client, active=True) if run.state_name == limits.WAITING), None))
    assert waiting.name == "second"
    assert waiting.state.message == "waits for 1 of dora-gpus: taken by first"
    assert not second.inside.is_set()

    assert first.end().is_completed()
    assert second.inside.wait(PATIENCE)
    assert (first.plans, second.plans, taken(client)) == (1, 2, 1)
    assert next(run.state_name for run in limits.read_runs(client, active=True) if run.name == "second") == "Running"
    second.end()
    assert taken(client) == 0


def test_a_run_that_fails_gives_its_slot_back(api: str, client: SyncPrefectClient, entries: list[Deployment]) -> None:
    deploy.deploy(api, pool="people", limit=1)
    run = Run("failing", error=RuntimeError("no"))
    assert run.inside.wait(PATIENCE) and taken(client) == 1
    assert run.end().is_failed() and taken(client) == 0


@pytest.mark.fault(17)
def test_without_the_limit_a_run_says_who_makes_it(api: str, client: SyncPrefectClient, entries: list[Deployment]) -> None:
    deploy.deploy(api, pool="people", limit=1)
    client.delete_global_concurrency_limit_by_name(limits.LIMIT)
    state = Run("lost").end()
    with pytest.raises(ServiceError, match="has no concurrency limit 'dora-gpus'") as error:
        state.result()
    assert "dora deploy" in error.value.hint
    assert deploy.deploy(api, pool="people").limit == (limits.LIMIT, 1, "created")


# --------------------------------------------------------------------------------------------------------------- reaper


def manifest(client: SyncPrefectClient, settings: Settings, run_id: str, state: Any, child: subprocess.Popen[bytes] | None = None) -> Any:
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


@pytest.mark.fault(8)
def test_a_sweep_tells_prefect_and_frees_what_nobody_holds(
    api: str, client: SyncPrefectClient, entries: list[Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy.deploy(api, pool="people", limit=1)
    settings = Settings()
    killed = manifest(client, settings, "killed", Running())
    cancelled = manifest(client, settings, "cancelled", Cancelling())
    client.update_global_concurrency_limit(limits.LIMIT, GlobalConcurrencyLimitUpdate(active_slots=1))

    swept = reap.sweep(settings, settings.effective())
    assert swept.runs == {"killed": "its process is gone", "cancelled": "its process is gone"}
    assert client.read_flow_run(killed.id).state_name == "Crashed"
    assert client.read_flow_run(cancelled.id).state_name == "Cancelled"
    assert swept.slots == 0 and taken(client) == 1, "a run that has just ended may still hold a lease"

    monkeypatch.setattr(reap, "LEASE_SECONDS", 0.0)
    assert reap.sweep(settings, settings.effective()).lines() == ["freed 1 slots of dora-gpus that nobody held"]
    assert taken(client) == 0


@pytest.mark.fault(9, 11)
def test_a_run_that_does_not_hear_that_it_is_cancelled_is_stopped(
    api: str, client: SyncPrefectClient, entries: list[Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker's watch for cancellations has ended with a server that was away."""
    deploy.deploy(api, pool="people", limit=1)
    settings = Settings()
    with subprocess.Popen(["sleep", "60"]) as child:
        deaf = manifest(client, settings, "deaf", Cancelling(), child)
        assert reap.sweep(settings, settings.effective()).unheard == [] and child.poll() is None, "it may be about to stop"
        monkeypatch.setattr(reap, "UNHEARD_SECONDS", 0.0)
        swept = reap.sweep(settings, settings.effective())
        assert child.poll() is not None
    assert (swept.unheard, swept.runs) == (["deaf"], {"deaf": "its flow run is Cancelled"})
    assert client.read_flow_run(deaf.id).state_name == "Cancelled"


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


def test_the_flow_says_what_it_did(api: str, client: SyncPrefectClient) -> None:
    state = reap.reap(return_state=True)
    assert state.is_completed() and state.message == "nothing is left over"


# ------------------------------------------------------------------------------------------------------------------- gc


def test_what_the_last_run_of_a_queued_project_left_is_not_collected(
    api: str, client: SyncPrefectClient, entries: list[Deployment], mixture: Path, tmp_path: Path
) -> None:
    """A run that waits for a worker continues from the last run of its project; where its project is not known, all results stay."""
    settings = Settings()
    place = settings.root / "configs" / "queued.yaml"
    place.parent.mkdir(parents=True)
    place.write_text(f"project: queued\ndata: {{train: [{{path: {mixture}}}]}}\n")
    store = Store(settings.store_uri)
    plan = build_plan(load_config(place), store)
    execute(plan.stages[0].spec, ingest.run, store)
    (store.folder("align", "a" * 64).path / "result.json").write_text('{"stage": "align", "digest": "", "files": {}, "facts": {}}')
    for project, stage, digest in (("queued", "ingest", plan.stages[0].digest), ("other", "align", "a" * 64)):
        done = StageRecord(stage=stage, label=stage, digest=digest, state="ran")
        record = RunRecord(run_id=f"{project}-1", project=project, started=1.0, finished=2.0, status="failed", stages=[done])
        write_record(store, record)
    deploy.deploy(api, pool="gc")
    realign = client.read_deployment_by_name("realign/realign").id
    run = client.create_flow_run_from_deployment(realign, name="night", parameters={"config_file": "queued.yaml"}, state=Scheduled())

    def collect() -> gc.Collected:
        return gc.collect(settings, replace(settings.effective(), prefect_api_url=api), older_than=0.0)

    looked = collect()
    assert looked.kept == {f"ingest/{plan.stages[0].digest}": "night is queued"} and looked.removed == [f"align/{'a' * 64}"]
    assert looked.runs == ["other-1"], "the manifest by which the next collection knows the queued project's results stays"
    place.unlink()
    looked = collect()
    assert "night is queued, and its project is not known" in looked.notes[0]
    assert set(looked.kept.values()) == {"night is queued"} and looked.removed == looked.runs == []
    client.set_flow_run_state(run.id, Cancelled(), force=True)
    assert collect().kept == {} and collect().notes == []

"""Kill parts of a real installation in the middle of a run: servers by ``dora up``, runs as the form in Prefect's UI starts them.

One installation for all tests, which break it and mend it. The fault is made while ``sft`` trains (its journal grows), so there is
finished, unfinished and future work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from flows.deployment import automations
from infra.settings import ServicesRecord
from tests.faults import Recovery
from tests.guarantee import agreed, leftovers, nothing_left, same_as_fault_free
from tests.machine import Machine
from tests.system.interrupted_runs import events, measured, mlflow_history, stage, start, start_training, until

pytestmark = [pytest.mark.system, pytest.mark.chaos]

Away = Callable[[Machine, str], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """An installation to be broken. Two runs at a time: the slot of a killed one is a lease of a minute."""
    machine = Machine(tmp_path_factory.mktemp("broken") / "home")
    try:
        mend(machine)
        machine.dora("deploy", "--limit", "2")
        yield machine
    finally:
        machine.dora("down")
    assert machine.processes() == []


def mend(machine: Machine) -> None:
    """Run `dora up`; a server whose port another process has taken meanwhile gets another."""
    machine.urls = machine.dora("up")["services"]


def service(machine: Machine, name: str) -> list[psutil.Process]:
    """List all processes of a service."""
    record = ServicesRecord.model_validate_json((machine.home / "services.json").read_text())
    leader = psutil.Process(record.services[name].process.pid)
    return [leader, *leader.children(recursive=True)]


def kill_service(machine: Machine, name: str) -> None:
    for process in service(machine, name):
        process.kill()


@contextmanager
def hung(machine: Machine, name: str) -> Iterator[None]:
    """Suspend a service: its kernel accepts connections, and it does not answer."""
    processes = service(machine, name)
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


@contextmanager
def killed(machine: Machine, name: str) -> Iterator[None]:
    """Kill a service; `dora up` starts it again at the end."""
    kill_service(machine, name)
    yield
    mend(machine)


def kill_worker_and_flow(machine: Machine, run: str) -> None:
    flow = flow_process(machine, run)
    kill_service(machine, "worker")  # and with it the flow, its child
    until(lambda: not flow.is_running() or flow.status() == psutil.STATUS_ZOMBIE)


def flow_process(machine: Machine, run: str) -> psutil.Process:
    """Find the process of a flow run; the scheduled `reap` may run at the same time."""
    [process] = [p for p in machine.find("prefect.engine") if p.environ().get("PREFECT__FLOW_RUN_ID") == run]
    return process


@pytest.mark.fault(6)
def test_a_killed_driver_is_tried_again_and_goes_on(machine: Machine, recovery: Recovery, tmp_path: Path) -> None:
    run = start_training(machine, "killed-driver")
    [driver] = machine.find("-m tasks.stages sft")
    driver.kill()
    recovery.begins()
    until(lambda: stage(machine, run, "sft")["state"] == "ran")
    recovery.ends()
    machine.wait_for_state(run, {"COMPLETED"})
    agreed(machine, run, "COMPLETED")
    attempts = {job[-1]: state for job, state in machine.ray_jobs().items() if job.startswith("dora-sft")}
    assert attempts == {"1": "FAILED", "2": "SUCCEEDED"}
    errors = [run["data"]["tags"] for run in machine.mlflow_runs("killed-driver") if run["info"]["status"] == "FAILED"]
    assert [t["value"] for tags in errors for t in tags if t["key"] == "dora.error" and "killed by SIGKILL" in t["value"]]
    assert [event["step"] for event in events(machine, run, "sft")].count(1) == 1, "the second attempt went on from a checkpoint"
    nothing_left(machine)
    same_as_fault_free(machine.store, machine.manifest(run), tmp_path)


@pytest.mark.fault(7)
def test_a_killed_flow_is_closed_by_its_worker_and_the_next_run_goes_on(machine: Machine, recovery: Recovery, tmp_path: Path) -> None:
    run = start_training(machine, "killed-flow")
    flow_process(machine, run).kill()
    recovery.begins()
    states = agreed(machine, run, "CRASHED")
    assert "SIGKILL" in states.message and "SIGKILL" in states.manifest["error"]["message"]
    assert states.manifest["error"]["hint"].startswith("run the same command again") and states.jobs == ["STOPPED"]
    again = start(machine, "killed-flow")
    machine.wait_for_state(again, {"COMPLETED"})
    recovery.ends()
    agreed(machine, again, "COMPLETED")
    assert stage(machine, again, "ingest")["state"] == "cached"
    assert [event["step"] for event in events(machine, again, "sft")].count(1) == 1, "it went on from a checkpoint"
    same_as_fault_free(machine.store, machine.manifest(again), tmp_path)


@pytest.mark.fault(8)
def test_what_a_killed_machine_left_is_reaped_although_it_holds_the_last_place(
    machine: Machine, recovery: Recovery, tmp_path: Path
) -> None:
    places = machine.prefect("GET", "/work_pools/dora/queues/default")["concurrency_limit"]
    machine.prefect("PATCH", "/work_pools/dora/queues/default", {"concurrency_limit": 1})
    run = start_training(machine, "killed-both")
    kill_worker_and_flow(machine, run)
    recovery.begins()
    mend(machine)
    again = start(machine, "killed-both")
    assert machine.wait_for_state(machine.start({}, "reap/reap"), {"COMPLETED"})
    states = agreed(machine, run, "CRASHED")
    assert "its process is gone" in states.message and states.mlflow_error == "its process is gone"
    ended = machine.wait_for_state(again, {"COMPLETED"})
    recovery.ends()
    assert ended["start_time"] > machine.prefect("GET", f"/flow_runs/{run}")["end_time"], "until then there was no place for it"
    agreed(machine, again, "COMPLETED")
    assert stage(machine, again, "ingest")["state"] == "cached"
    machine.prefect("PATCH", "/work_pools/dora/queues/default", {"concurrency_limit": places})
    same_as_fault_free(machine.store, machine.manifest(again), tmp_path)


@pytest.mark.fault(8)
def test_the_server_itself_notices_that_a_run_has_fallen_silent(machine: Machine, recovery: Recovery) -> None:
    """With Prefect's shortest time between two heartbeats; only the server is left."""
    machine.environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = "30"
    kill_service(machine, "worker")
    mend(machine)
    run = start_training(machine, "silent")
    kill_worker_and_flow(machine, run)
    recovery.begins()
    crashed = until(lambda: (flow_run := machine.prefect("GET", f"/flow_runs/{run}"))["state_type"] == "CRASHED" and flow_run)
    recovery.ends()
    assert crashed["state"]["message"].startswith("no heartbeat for 0:01:30: its process is gone; ")
    assert list(machine.dora("reap")["runs"].values()) == ["its flow run is Crashed"]
    agreed(machine, run, "CRASHED")
    del machine.environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]
    mend(machine)
    nothing_left(machine)


@pytest.mark.fault(8)
def test_the_server_itself_ends_upkeep_that_a_worker_took_and_never_began(machine: Machine, recovery: Recovery) -> None:
    kill_service(machine, "worker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(automations, "PENDING_LIMIT", timedelta(seconds=10))  # Prefect's minimum
        automations.install(f"{machine.urls['prefect']}/api", None)
    run = machine.start({}, "reap/reap")
    assert machine.prefect("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "PENDING"}})["status"] == "ACCEPT"
    recovery.begins()
    crashed = until(lambda: (flow_run := machine.prefect("GET", f"/flow_runs/{run}"))["state_type"] == "CRASHED" and flow_run)
    recovery.ends()
    assert crashed["state"]["message"] == f"not started within 0:00:10: {automations.AGAIN}"
    mend(machine)


@pytest.mark.fault(10)
@pytest.mark.parametrize("away", [killed, hung])
def test_what_mlflow_missed_is_sent_when_it_is_back(machine: Machine, recovery: Recovery, away: Away) -> None:
    run = start_training(machine, f"mlflow-{away.__name__}")
    with away(machine, "mlflow"):
        recovery.begins()
        until(lambda: stage(machine, run, "sft")["state"] == "ran")  # training does not wait for MLflow
    machine.wait_for_state(run, {"COMPLETED"})
    agreed(machine, run, "COMPLETED")
    recovery.ends()
    for label in ("sft", "align"):
        assert mlflow_history(machine, run, label, "loss") == measured(machine, run, label, "loss") != []
    assert stage(machine, run, "sft")["mlflow_run_id"], "which MLflow gave after the stage had ended"
    assert not list((machine.home / "spool").glob("*")), "nothing waits any more"


@pytest.mark.fault(10)
def test_without_mlflow_a_run_says_what_is_pending_and_the_next_one_sends_it(machine: Machine, recovery: Recovery) -> None:
    run = start_training(machine, "mlflow-away")
    kill_service(machine, "mlflow")
    recovery.begins()
    machine.wait_for_state(run, {"COMPLETED"})
    artifacts = machine.prefect("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    summary = next(a["data"] for a in artifacts if a["key"].startswith("realign-"))
    assert "MLflow updates for" in summary and "the next run or `dora reap` sends them" in summary
    mend(machine)
    again = start(machine, "mlflow-away")
    machine.wait_for_state(again, {"COMPLETED"})
    recovery.ends()
    agreed(machine, run, "COMPLETED")
    runs = machine.mlflow_runs("mlflow-away")
    assert {run["info"]["status"] for run in runs} == {"FINISHED"}
    names = [run["info"]["run_name"] for run in runs]
    assert sorted(names).count("sft") == 1 and names.count("align") == 1, "nothing twice"
    assert mlflow_history(machine, run, "sft", "loss") == measured(machine, run, "sft", "loss") != []
    nothing_left(machine)


@pytest.mark.fault(12)
def test_a_run_goes_on_by_itself_on_a_restarted_head(machine: Machine, recovery: Recovery, tmp_path: Path) -> None:
    run = start_training(machine, "no-ray")
    old = [process for process in machine.living() if "ray" in " ".join(process.cmdline()).partition(" --")[0]]
    [gcs] = machine.find("gcs_server")
    gcs.kill()
    recovery.begins()
    mend(machine)
    machine.wait_for_state(run, {"COMPLETED"})
    recovery.ends()
    agreed(machine, run, "COMPLETED")
    assert gcs in old and not [process for process in old if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    nothing_left(machine)
    same_as_fault_free(machine.store, machine.manifest(run), tmp_path)


@pytest.mark.fault(16)
def test_of_two_equal_runs_one_computes_and_the_other_waits_for_it(machine: Machine, recovery: Recovery) -> None:
    runs = [start(machine, "twice") for _ in range(2)]
    recovery.begins()
    for run in runs:
        machine.wait_for_state(run, {"COMPLETED"})
    recovery.ends()
    waits = {run: _waits(machine, run, machine.manifest(other)["run_id"]) for run, other in (runs, runs[::-1])}
    assert any(waits.values()), waits
    first, second = sorted(runs, key=lambda run: len(waits[run]))
    digests = {s["digest"][:12] for s in machine.manifest(first)["stages"]}
    assert all(job.endswith("-1") for job in machine.ray_jobs() if job.split("-")[2] in digests)
    assert [s["state"] for s in machine.manifest(second)["stages"]].count("ran") < len(digests)
    for run in runs:
        agreed(machine, run, "COMPLETED")
    nothing_left(machine)


def _waits(machine: Machine, run: str, owner: str) -> list[str]:
    """Find the messages in a run's log about waiting for another one."""
    logs = machine.prefect("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})
    said = [log["message"] for log in logs if log["message"].startswith(f"waits for {owner} (process ")]
    assert all("), which computes the same " in sentence for sentence in said)
    return said


@pytest.mark.fault(11)
def test_a_run_survives_a_prefect_server_that_hangs_and_commands_do_not_wait_for_it(
    machine: Machine, recovery: Recovery, tmp_path: Path
) -> None:
    run = start_training(machine, "hung-prefect")
    with hung(machine, "prefect"):
        recovery.begins()
        for command in (["reap"], ["demo"]):
            error = machine.dora(*command, code=1)
            assert error["message"].startswith(f"Prefect at {machine.urls['prefect']}/api does not answer: ReadTimeout"), error
            assert "`dora up` starts it" in error["hint"]
        time.sleep(15)  # together well over a minute: the fault itself
    machine.wait_for_state(run, {"COMPLETED"})
    recovery.ends()
    agreed(machine, run, "COMPLETED")
    nothing_left(machine)
    same_as_fault_free(machine.store, machine.manifest(run), tmp_path)


@pytest.mark.fault(11)
def test_a_run_survives_a_minute_without_the_prefect_api(machine: Machine, recovery: Recovery, tmp_path: Path) -> None:
    run = start_training(machine, "no-prefect")
    kill_service(machine, "prefect")
    recovery.begins()
    time.sleep(60)  # the fault itself: training ends within it, and so might the run
    mend(machine)
    machine.wait_for_state(run, {"COMPLETED"})
    recovery.ends()
    agreed(machine, run, "COMPLETED")
    same_as_fault_free(machine.store, machine.manifest(run), tmp_path)
    # A restarted server counts the slot although the lease went with it; `reap` frees it, two minutes after the last run.
    until(lambda: machine.dora("reap") and not leftovers(machine))

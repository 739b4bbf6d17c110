"""`dora up`, a run triggered as the Prefect UI does it, its cancellation, and `dora down`, which leaves nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests
import yaml

from tests.faults import Recovery
from tests.guarantee import agreed, nothing_left
from tests.machine import WAIT_SECONDS, Machine, small_run

pytestmark = pytest.mark.system


def task_runs(machine: Machine, run: str) -> list[dict[str, Any]]:
    return machine.prefect("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_ASC"})


def states(machine: Machine, run: str) -> list[dict[str, Any]]:
    return machine.prefect("GET", f"/flow_run_states/?flow_run_id={run}")


def test_up_offers_what_is_declared(machine: Machine) -> None:
    again = machine.dora("deploy")
    assert set(again["deployments"].values()) == {"unchanged"}, "`dora up` has deployed"
    assert again["concurrency_limit"]["change"] == "unchanged"
    switched_on = {name for name, when in again["schedules"].items() if when.endswith(", on")}
    assert switched_on == {"reap/reap"}


@pytest.mark.fault(16)
def test_two_runs_take_turns_and_show_stages_reasons_and_links(machine: Machine) -> None:
    runs = [machine.start(small_run(machine, "served", on_ray_train=["align"], epochs=1)) for _ in range(2)]
    ended = [machine.wait_for_state(run, {"COMPLETED"}) for run in runs]
    waits = {run: [state["message"] for state in states(machine, run) if state["name"] == "Waiting"] for run in runs}
    again, run = sorted(runs, key=lambda run: not waits[run])
    assert not waits[run]
    assert "waits for 1 of dora-gpus: taken by served" in waits[again][0]
    parts = [flow_run["name"].split(" · ", 2) for flow_run in ended]  # project, day, and what it is: nothing changed since an earlier run
    assert [(project, rest) for project, _, rest in parts] == [("served", "mixture.parquet · dpo · erm")] * 2

    tasks = task_runs(machine, run)
    assert [t["name"].split(" · ")[0] for t in tasks] == ["ingest", "sft", "reference", "training_data", "align", "evaluate", "promote"]
    assert all("runs: first time" in t["state"]["message"] for t in tasks)
    align = next(t for t in tasks if t["name"].startswith("align"))
    parents = {p["id"] for inputs in align["task_inputs"].values() for p in inputs if p["input_type"] == "task_run"}
    assert parents == {t["id"] for t in tasks if t["name"].split(" · ")[0] == "training_data"}, "the direct edge alone"
    artifacts = machine.prefect("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    tables = [a["data"] for a in artifacts if a["type"] == "markdown" and not a["key"].startswith("data-")]
    summary = next(data for data in tables if "align" in data)
    assert machine.urls["mlflow"] in summary and "align" in summary
    data = next(a["data"] for a in artifacts if a["type"] == "markdown" and a["key"].startswith("data-"))
    assert "`data.train[0]` is read as" in data and "| input | preset | shape | rows |" in data
    assert set(machine.mlflow_states("served")) == {"FINISHED"}
    assert set(machine.ray_jobs().values()) == {"SUCCEEDED"}
    assert task_runs(machine, again) == [], "its plan was made when its turn came: nothing was left to do"


def test_a_schedule_fires_by_itself_and_finds_nothing_to_do(machine: Machine) -> None:
    """`realign-nightly`, switched on with a short interval, with its configuration file: the small run's, whose stages are all finished."""
    given = small_run(machine, "served", epochs=1)
    config = yaml.safe_load((machine.home / "configs" / given["config_file"]).read_text())
    config |= {"project": "served", "data": {"train": [given["data"]]}}
    config["sft"]["optimization"]["epochs"] = 1
    config["align"] = {"objective": {"name": "erm"}, "optimization": given["training"]}
    (machine.home / "configs" / "nightly.yaml").write_text(yaml.safe_dump(config))
    deployment = machine.prefect("GET", "/deployments/name/realign/realign-nightly")
    [schedule] = deployment["schedules"]
    assert not schedule["active"]
    place = f"/deployments/{deployment['id']}/schedules/{schedule['id']}"
    machine.prefect("PATCH", place, {"active": True, "schedule": {"interval": 5}})
    deadline = time.monotonic() + WAIT_SECONDS
    where = {"deployments": {"id": {"any_": [deployment["id"]]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED"]}}}}
    while not (ended := machine.prefect("POST", "/flow_runs/filter", where)):
        assert time.monotonic() < deadline, "no run was scheduled"
        time.sleep(0.5)
    machine.prefect("PATCH", place, {"active": False})
    assert ended[0]["auto_scheduled"] and "nothing to do: every stage was cached" in ended[0]["state"]["message"]


def test_a_bad_parameter_is_refused_before_anything_runs(machine: Machine) -> None:
    wrong = small_run(machine, "wrong", epochs=1)
    wrong["method"]["lambda"] = -1
    deployment = machine.prefect("GET", "/deployments/name/realign/realign")
    answer = requests.post(
        f"{machine.urls['prefect']}/api/deployments/{deployment['id']}/create_flow_run", json={"parameters": wrong}, timeout=30
    )
    assert answer.status_code == 409
    assert "minimum" in answer.text


@pytest.mark.fault(9)
def test_a_cancelled_run_leaves_no_job_and_no_running_mlflow_run(machine: Machine, recovery: Recovery) -> None:
    run = machine.start(small_run(machine, "cancelled", on_ray_train=["sft"], epochs=1000))
    deadline = time.monotonic() + WAIT_SECONDS
    while not any(job.startswith("dora-sft") and status == "RUNNING" for job, status in machine.ray_jobs().items()):
        assert time.monotonic() < deadline, machine.ray_jobs()
        time.sleep(0.5)
    time.sleep(3)  # let the driver start its Ray Train workers: they must go too
    answer = machine.prefect("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    recovery.begins()
    assert answer["status"] == "ACCEPT"
    machine.wait_for_state(run, {"CANCELLED"})
    states = agreed(machine, run, "CANCELLED")
    nothing_left(machine)
    recovery.ends()
    assert states.jobs == ["STOPPED"] and sorted(states.mlflow_stages) == ["FINISHED", "KILLED"]
    assert states.manifest["error"]["hint"].startswith("run the same command again")


def test_down_ends_everything(machine: Machine) -> None:
    assert machine.dora("down")["stopped"]
    assert machine.processes() == []
    assert machine.dora("down")["stopped"] == []

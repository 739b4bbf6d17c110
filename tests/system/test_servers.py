"""`dora up`, a run triggered as the Prefect UI does it, its cancellation, and `dora down`: nothing may be left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from dora_core.testbed import Testbed, TestbedConfig
from infra.ray_head import auth_headers

pytestmark = pytest.mark.system

WAIT_SECONDS = 240


class Machine:
    """A home of its own with servers started by ``dora up``."""

    def __init__(self, home: Path):
        self.home = home
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("DORA_", "PREFECT_", "MLFLOW_", "RAY_"))}
        self.environment["DORA_HOME"] = str(home)
        self.urls: dict[str, str] = {}

    def dora(self, *arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-c", "from flows.cli import main; main()", *arguments, "--json"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def prefect(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        for _ in range(5):  # a busy SQLite answers 503, and Prefect's own client tries again
            answer = requests.request(method, f"{self.urls['prefect']}/api{path}", json=body, timeout=30)
            if answer.status_code != 503:
                break
            time.sleep(2)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json()

    def ray_jobs(self) -> dict[str, str]:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(next((self.home / "ray").rglob("*token*")))}
        jobs = requests.get(f"{self.urls['ray']}/api/jobs/", headers=auth_headers(token), timeout=30).json()
        return {job["submission_id"]: job["status"] for job in jobs if job["submission_id"]}

    def mlflow_states(self, project: str) -> list[str]:
        api = f"{self.urls['mlflow']}/api/2.0/mlflow"
        experiment = requests.get(f"{api}/experiments/get-by-name", params={"experiment_name": project}, timeout=30).json()["experiment"]
        runs = requests.post(f"{api}/runs/search", json={"experiment_ids": [experiment["experiment_id"]]}, timeout=30).json()["runs"]
        return [run["info"]["status"] for run in runs]

    def processes(self) -> list[str]:
        """Command lines of everything that belongs to this home."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DORA_HOME") == str(self.home) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("servers") / "home")
    try:
        machine.urls = machine.dora("up")["services"]
        yield machine
    finally:
        machine.dora("down")


def parameters(machine: Machine, project: str, **optimization: Any) -> dict[str, Any]:
    """What the UI's form would send: a small run that needs no classifier."""
    data = Testbed(TestbedConfig(prompts=40, responses_per_prompt=3)).write(machine.home / "mixture.parquet")
    return {
        "config": {
            "project": project,
            "data": {"train": [{"path": str(data)}]},
            "text": {"max_prompt_tokens": 32, "max_response_tokens": 64},
            "policy": {"hidden_size": 32, "heads": 2, "layers": 1, "vocab_size": 320},
            "sft": {"optimization": {"batch_size": 8} | optimization},
            "align": {"objective": {"name": "erm"}, "optimization": {"max_steps": 3, "batch_size": 8}},
            "evaluate": {"kl_prompts": 0, "bootstrap_samples": 100},
            "compare": None,
            "execution": {"default": {"workers": 1}, "reference": {"workers": 0}, "evaluate": {"workers": 0}},
        },
        "until": "promote",
    }


def start(machine: Machine, parameters: dict[str, Any]) -> str:
    deployment = machine.prefect("GET", "/deployments/name/realign/realign")
    return machine.prefect("POST", f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})["id"]


def wait_for_state(machine: Machine, run: str, wanted: set[str]) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        flow_run = machine.prefect("GET", f"/flow_runs/{run}")
        if flow_run["state"]["type"] in wanted:
            return flow_run
        assert flow_run["state"]["type"] not in {"FAILED", "CRASHED"}, flow_run["state"]
        time.sleep(0.5)
    raise AssertionError(f"still {flow_run['state']['type']} after {WAIT_SECONDS} s, wanted {wanted}")


def task_runs(machine: Machine, run: str) -> list[dict[str, Any]]:
    return machine.prefect("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_ASC"})


def test_a_run_from_the_deployment_shows_stages_reasons_and_links(machine: Machine) -> None:
    run = start(machine, parameters(machine, "served", epochs=1))
    flow_run = wait_for_state(machine, run, {"COMPLETED"})
    assert flow_run["name"] == "served · dpo · erm"
    tasks = task_runs(machine, run)
    assert [t["name"].split(" · ")[0] for t in tasks] == ["ingest", "sft", "reference", "align", "evaluate", "promote"]
    assert all("runs: first time" in t["state"]["message"] for t in tasks)
    align = next(t for t in tasks if t["name"].startswith("align"))
    parents = {p["id"] for inputs in align["task_inputs"].values() for p in inputs if p["input_type"] == "task_run"}
    assert parents == {t["id"] for t in tasks if t["name"].split(" · ")[0] in ("ingest", "sft", "reference")}
    artifacts = machine.prefect("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    summary = next(a["data"] for a in artifacts if a["type"] == "markdown")
    assert machine.urls["mlflow"] in summary and "align" in summary
    assert set(machine.mlflow_states("served")) == {"FINISHED"}
    assert set(machine.ray_jobs().values()) == {"SUCCEEDED"}

    again = start(machine, parameters(machine, "served", epochs=1))
    wait_for_state(machine, again, {"COMPLETED"})
    assert {t["state"]["name"] for t in task_runs(machine, again)} == {"Cached"}


def test_a_bad_parameter_is_refused_before_anything_runs(machine: Machine) -> None:
    wrong = parameters(machine, "wrong", epochs=1)
    wrong["config"]["align"]["objective"]["lambda"] = -1
    deployment = machine.prefect("GET", "/deployments/name/realign/realign")
    answer = requests.post(
        f"{machine.urls['prefect']}/api/deployments/{deployment['id']}/create_flow_run", json={"parameters": wrong}, timeout=30
    )
    assert answer.status_code == 409
    assert "minimum" in answer.text


def test_a_cancelled_run_leaves_no_job_and_no_running_mlflow_run(machine: Machine) -> None:
    run = start(machine, parameters(machine, "cancelled", epochs=1000))
    deadline = time.monotonic() + WAIT_SECONDS
    while not any(job.startswith("dora-sft") and status == "RUNNING" for job, status in machine.ray_jobs().items()):
        assert time.monotonic() < deadline, machine.ray_jobs()
        time.sleep(0.5)
    time.sleep(3)  # let the driver start its Ray Train workers: they must go too
    answer = machine.prefect("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    assert answer["status"] == "ACCEPT"
    wait_for_state(machine, run, {"CANCELLED"})
    while "RUNNING" in machine.ray_jobs().values() or any("tasks.sft" in line for line in machine.processes()):
        assert time.monotonic() < deadline, (machine.ray_jobs(), machine.processes())
        time.sleep(0.5)
    while "RUNNING" in machine.mlflow_states("cancelled"):
        assert time.monotonic() < deadline, machine.mlflow_states("cancelled")
        time.sleep(0.5)
    assert "KILLED" in machine.mlflow_states("cancelled")


def test_down_ends_everything(machine: Machine) -> None:
    assert machine.dora("down")["stopped"]
    assert machine.processes() == []
    assert machine.dora("down")["stopped"] == []

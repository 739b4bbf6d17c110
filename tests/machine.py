"""A separate home with servers started by ``dora up``, and the requests of tests to them."""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml

from dora_core.testbed.mixture import Testbed, TestbedConfig
from flows.run_record import read_records
from infra.ray_head import auth_headers
from infra.store.store import Store
from tests.progress import run_to_its_end
from tests.shared_ray import EQUAL_PRIORITY

WAIT_SECONDS = 400


def processes_of(home: Path) -> list[psutil.Process]:
    """Find all processes of a home, by their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("DORA_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def environment_of(home: Path) -> dict[str, str]:
    """Return the environment of commands with a separate home: it names no server, and Ray's workers have the priority of all processes."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DORA_", "PREFECT_", "MLFLOW_", "RAY_"))}
    return inherited | EQUAL_PRIORITY | {"DORA_HOME": str(home)}


class Machine:
    """A home of its own with servers started by ``dora up``."""

    def __init__(self, home: Path):
        self.home = home
        self.environment = environment_of(home)
        self.urls: dict[str, str] = {}

    def dora(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Run a command and return its JSON; with ``code``, it must fail with it, and its error is returned."""
        command = [sys.executable, "-c", "from flows.cli import main; main()", *arguments, "--json"]
        done = run_to_its_end(command, self.environment, others=self.living)
        assert done.returncode == code, done.stderr
        document = json.loads(done.stdout)
        return document["error"] if code else document

    def prefect(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        for _ in range(30):  # a busy SQLite answers 503, and Prefect's own client tries again for a minute
            answer = requests.request(method, f"{self.urls['prefect']}/api{path}", json=body, timeout=30)
            if answer.status_code != 503:
                break
            time.sleep(2)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def ray_jobs(self) -> dict[str, str]:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(next((self.home / "ray").rglob("*token*")))}
        jobs = requests.get(f"{self.urls['ray']}/api/jobs/", headers=auth_headers(token), timeout=30).json()
        return {job["submission_id"]: job["status"] for job in jobs if job["submission_id"]}

    def mlflow_states(self, project: str) -> list[str]:
        return [run["info"]["status"] for run in self.mlflow_runs(project)]

    def living(self) -> list[psutil.Process]:
        """Everything that belongs to this home."""
        return processes_of(self.home)

    def processes(self) -> list[str]:
        """Command lines of everything that belongs to this home."""
        return [line for line, _ in self._lines()]

    def find(self, text: str) -> list[psutil.Process]:
        """Find the Python processes of this home whose command line contains ``text``."""
        return [process for line, process in self._lines() if text in line and not line.startswith("/bin/sh")]

    def _lines(self) -> list[tuple[str, psutil.Process]]:
        lines = []
        for process in self.living():
            with suppress(psutil.Error):
                lines.append((" ".join(process.cmdline()), process))
        return lines

    @property
    def store(self) -> Store:
        return Store(str(self.home / "store"))

    def manifest(self, flow_run: str) -> dict[str, Any]:
        """Return the newest manifest of a flow run."""
        found = (record for record in read_records(self.store) if record.flow_run_id == flow_run)
        return max(found, key=lambda record: record.started).model_dump(mode="json")

    def start(self, parameters: dict[str, Any], deployment_name: str = "realign/realign") -> str:
        """Start a flow run as the form of a deployment does; returns its id."""
        deployment = self.prefect("GET", f"/deployments/name/{deployment_name}")
        return self.prefect("POST", f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})["id"]

    def wait_for_state(self, run: str, wanted: set[str]) -> dict[str, Any]:
        """Wait until the state of a flow run has a wanted type; returns the flow run."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            flow_run = self.prefect("GET", f"/flow_runs/{run}")
            if flow_run["state"]["type"] in wanted:
                return flow_run
            assert flow_run["state"]["type"] not in {"FAILED", "CRASHED"}, flow_run["state"]
            time.sleep(0.5)
        raise AssertionError(f"still {flow_run['state']['type']} after {WAIT_SECONDS} s, wanted {wanted}")

    def last_run(self, deployment: str) -> str:
        """Return the id of a deployment's last flow run."""
        where = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_DESC", "limit": 1}
        return self.prefect("POST", "/flow_runs/filter", where)[0]["id"]

    def mlflow_runs(self, project: str) -> list[dict[str, Any]]:
        """List the runs of a project, newest first."""
        api = f"{self.urls['mlflow']}/api/2.0/mlflow"
        experiment = requests.get(f"{api}/experiments/get-by-name", params={"experiment_name": project}, timeout=30).json()["experiment"]
        return requests.post(f"{api}/runs/search", json={"experiment_ids": [experiment["experiment_id"]]}, timeout=30).json()["runs"]


def small_run(machine: Machine, project: str, *, on_ray_train: Iterable[str] = (), **sft: Any) -> dict[str, Any]:
    """Parameters of the UI's form for a small run without a classifier: a file on the worker's machine, and the filled-in fields.

    Args:
        on_ray_train: stages that train in a worker of Ray Train, which takes longer to start than these stages to compute; the others do
            in the process of their job.
        sft: fields of its optimisation.
    """
    (machine.home / project).mkdir(exist_ok=True)
    testbed = TestbedConfig(prompts=40, responses_per_prompt=3, seed=zlib.crc32(project.encode()))  # projects share results
    data = Testbed(testbed).write(machine.home / project / "mixture.parquet")
    small = {
        "text": {"max_prompt_tokens": 32, "max_response_tokens": 64},
        "policy": {"hidden_size": 32, "heads": 2, "layers": 1, "vocab_size": 320},
        "sft": {"optimization": {"batch_size": 8}},
        "evaluate": {"kl_prompts": 0, "bootstrap_samples": 100},
        "compare": None,
        "gate": {"min_accuracy": 0.0, "min_lift": -1.0, "max_golden_drop": 1.0, "when_uncertain": "promote"},
        "execution": {"default": {"workers": 0}} | {stage: {"workers": 1} for stage in on_ray_train},
    }
    (machine.home / "configs").mkdir(exist_ok=True)
    (machine.home / "configs" / "small.yaml").write_text(yaml.safe_dump(small))
    return {
        "config_file": "small.yaml",
        "data": {"path": str(data)},
        "method": {"objective": "erm"},
        "training": {"max_steps": 3, "batch_size": 8},
        "overrides": [f"project={project}", *(f"sft.optimization.{name}={value}" for name, value in sft.items())],
    }

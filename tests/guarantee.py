"""Checks of the guarantees after any fault, once the run has ended or resumed (``tests/FAULTS.md``), for tests with real servers.

:func:`same_as_fault_free` is I2, :func:`agreed` I3 and :func:`nothing_left` I4. The latter two wait: I3 allows 60 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dora_core.config.execution import Execution
from flows.running.gpu_slots import LIMIT
from infra.ray_head import RayHead
from infra.ray_jobs import ACTIVE
from infra.settings import ServicesRecord
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages.registry import STAGES
from tests.machine import Machine

AGREE_SECONDS = 60.0
LEFT_SECONDS = 150.0
"""The slot of a killed run is a lease of 60 s, which the server checks twice a minute."""

SAME = {"COMPLETED": ("FINISHED", "completed"), "FAILED": ("FAILED", "failed")} | dict.fromkeys(
    ("CRASHED", "CANCELLED"), ("KILLED", "cancelled")
)
"""Prefect's type of state → MLflow's status and the manifest's."""
RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_AutoscalingCoordinatorActor")


@dataclass(frozen=True)
class States:
    """The states of one run in all systems."""

    prefect: str
    message: str
    task_runs: list[str]
    jobs: list[str]
    mlflow: str
    mlflow_stages: list[str]
    mlflow_error: str
    manifest: dict[str, Any]

    def disagreement(self) -> str | None:
        """Describe the first state that is not terminal or contradicts another; None if all agree."""
        if self.prefect not in SAME:
            return f"Prefect's flow run is {self.prefect}"
        status, word = SAME[self.prefect]
        if (self.mlflow, self.manifest["status"]) != (status, word):
            return f"Prefect says {self.prefect}, MLflow {self.mlflow}, the manifest {self.manifest['status']}"
        if open_runs := [state for state in self.task_runs if state not in SAME]:
            return f"task runs are {open_runs}"
        if "RUNNING" in self.mlflow_stages:
            return f"MLflow's stages are {self.mlflow_stages}"
        if ACTIVE & set(self.jobs):
            return f"Ray's jobs are {self.jobs}"
        if any(stage["state"] == "running" for stage in self.manifest["stages"]):
            return "a stage of the manifest is running"
        if status != "FINISHED" and not (self.message and self.mlflow_error and self.manifest["error"]["message"]):
            return "a cause is missing"
        return None


def look(machine: Machine, flow_run: str) -> States:
    """Read the states from Prefect, Ray, MLflow and the store."""
    run = machine.prefect("GET", f"/flow_runs/{flow_run}")
    tasks = machine.prefect("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
    manifest = machine.manifest(flow_run)
    submitted = {stage["submission_id"] for stage in manifest["stages"]}
    tracked = [(r["info"]["status"], _tags(r)) for r in machine.mlflow_runs(manifest["project"])]
    tracked = [(status, tags) for status, tags in tracked if tags.get("dora.run_id") == manifest["run_id"]]
    [(status, tags)] = [found for found in tracked if "dora.stage" not in found[1]]
    return States(
        prefect=run["state"]["type"],
        message=run["state"]["message"] or "",
        task_runs=[task["state"]["type"] for task in tasks],
        jobs=[state for job, state in machine.ray_jobs().items() if job in submitted],
        mlflow=status,
        mlflow_stages=[status for status, tags in tracked if "dora.stage" in tags],
        mlflow_error=tags.get("dora.error", ""),
        manifest=manifest,
    )


def agreed(machine: Machine, flow_run: str, ended: str) -> States:
    """Assert I3: within 60 s all systems report the end of the run and its kind, and the cause unless it completed.

    Args:
        ended: the expected type of Prefect's state.
    """
    poll(lambda: look(machine, flow_run).disagreement(), AGREE_SECONDS)
    states = look(machine, flow_run)
    assert states.prefect == ended, states
    return states


def nothing_left(machine: Machine) -> None:
    """Assert I4: no process but the servers', no active Ray job, no slot taken, no temporary file."""
    poll(lambda: "; ".join(leftovers(machine)) or None, LEFT_SECONDS)


def leftovers(machine: Machine) -> list[str]:
    """List everything that should not be left, one line each."""
    found = [f"process {line}" for line in strangers(machine)]
    found += [f"Ray job {job} is {state}" for job, state in machine.ray_jobs().items() if state in ACTIVE]
    taken = machine.prefect("GET", f"/v2/concurrency_limits/{LIMIT}")["active_slots"]
    found += [f"{taken} slots are taken"] if taken else []
    store = machine.home / "store"
    return found + [f"file {path.relative_to(store)}" for path in [*store.rglob("*.tmp"), *(store / "locks").glob("*")]]


def strangers(machine: Machine) -> list[str]:
    """List command lines of processes of this home outside of the servers: flows, hooks, jobs, actors."""
    record = ServicesRecord.model_validate_json((machine.home / "services.json").read_text(encoding="utf-8"))
    servers = {service.process.pid for service in record.services.values()}
    parts = {"prefect", "mlflow", "ray"}  # a worker's children are flows
    head = RayHead.attach(machine.home / "ray" / "services")
    owners = {service.process.pid for name, service in record.services.items() if name in parts} | ({head.process.pid} if head else set())
    found = []
    for process in machine.living():
        try:
            line = " ".join(process.cmdline()).strip()
            inside = owners & {process.pid, *(parent.pid for parent in process.parents())}
        except psutil.Error:
            continue
        works = "-m tasks." in line or (line.startswith("ray::") and not line.startswith(RAYS_OWN))
        if process.pid not in servers and (works or not inside):
            found.append(line[:120])
    return found


def same_as_fault_free(store: Store, manifest: dict[str, Any], folder: Path) -> None:
    """Assert I2: every file of every stage has the bytes of the same stages run in one process, one after the other, without a fault."""
    fresh = Store(str(folder / "fault-free"))
    assert [stage["state"] for stage in manifest["stages"]] and manifest["status"] == "completed"
    for stage in manifest["stages"]:
        if stage["stage"] == "promote":  # registers a model; its inputs are compared
            continue
        result = store.read_result(stage["stage"], stage["digest"])
        assert result is not None, stage
        known = STAGES[stage["stage"]]
        payload = {name: value for name, value in result["spec"].items() if name not in ("stage", "version")}
        spec = known.spec.model_validate(payload | {"execution": Execution(workers=0)})
        assert spec.digest() == stage["digest"]
        alone = execute(spec, known.run, fresh)
        files = {name: facts["sha256"] for name, facts in result["files"].items()}
        assert files == {name: facts["sha256"] for name, facts in alone["files"].items()}, stage["label"]


def poll(problem: Callable[[], str | None], seconds: float) -> None:
    """Wait until ``problem`` returns None; fail with the last one after ``seconds``."""
    deadline = time.monotonic() + seconds
    while (found := problem()) is not None:
        assert time.monotonic() < deadline, f"after {seconds:.0f} s: {found}"
        time.sleep(1.0)


def _tags(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}

"""Runs of a real installation that tests interrupt: started as the form in Prefect's UI does, long enough to be met in training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import requests

from infra.store.journal import JournalReader
from tests.machine import WAIT_SECONDS, Machine, small_run

CHECKPOINT_EVERY = 10
EPOCHS = 200
"""Epochs of ``sft``: seconds more than its journal and the test need to notice its start."""


def start(machine: Machine, project: str) -> str:
    given = small_run(machine, project, epochs=EPOCHS)
    given["overrides"] += [f"execution.default={{workers: 0, checkpoint_every: {CHECKPOINT_EVERY}}}"]
    return machine.start(given | {"until": "align"})


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.2)
    return value


def stage(machine: Machine, run: str, label: str) -> dict[str, Any]:
    return next(s for s in machine.manifest(run)["stages"] if s["label"] == label)


def events(machine: Machine, run: str, label: str) -> list[dict[str, Any]]:
    """Read the metrics that a stage has journaled, in all its attempts."""
    found = JournalReader(machine.store, label, stage(machine, run, label)["digest"]).new_events()
    return [event for event in found if event["kind"] == "metrics"]


def start_training(machine: Machine, project: str) -> str:
    """Start a run and wait until its ``sft`` is in the middle of its steps and has a checkpoint; returns its id."""
    run = start(machine, project)
    until(lambda: any(m["flow_run_id"] == run for m in _manifests(machine)) and stage(machine, run, "sft")["state"] == "running")
    until(lambda: any(event["step"] > CHECKPOINT_EVERY for event in events(machine, run, "sft")))
    return run


def _manifests(machine: Machine) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (machine.home / "store" / "runs").glob("*/run.json")]


def mlflow_history(machine: Machine, run: str, label: str, metric: str) -> list[tuple[int, float]]:
    """Read (step, value) of a metric from MLflow, by run name: the manifest has no id of a stage that was tracked while MLflow was away."""
    tracked = machine.mlflow_runs(machine.manifest(run)["project"])
    [found] = [t["info"]["run_id"] for t in tracked if t["info"]["run_name"] == label]
    query = {"run_id": found, "metric_key": metric, "max_results": 20000}
    found = requests.get(f"{machine.urls['mlflow']}/api/2.0/mlflow/metrics/get-history", params=query, timeout=30).json()["metrics"]
    return sorted((metric["step"], metric["value"]) for metric in found)


def measured(machine: Machine, run: str, label: str, metric: str) -> list[tuple[int, float]]:
    """Read (step, value) of a metric from the stage's journal."""
    return sorted((event["step"], event["values"][metric]) for event in events(machine, run, label) if metric in event["values"])

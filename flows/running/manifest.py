"""``runs/<run_id>/run.json``: what a run is about to do, does and has done, for everybody who looks at it from outside.

Written at every change by the run's own process; read by reports, by ``dora reap`` and by a run that goes on after a decision.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flows.config.models import MethodConfig
from flows.planning.plan import Plan, PlannedStage
from infra.processes import RecordedProcess
from infra.settings import Places
from infra.store.store import Store


@dataclass(frozen=True)
class FlowRun:
    """Prefect's run that a session belongs to."""

    flow: str
    id: str
    name: str
    is_again: bool = False
    """Another process has run a part of it, until it was suspended."""

    def url(self, places: Places) -> str | None:
        """Its page; None where no server with a UI runs."""
        return f"{places.prefect_ui}/runs/flow-run/{self.id}" if places.prefect_ui else None


@dataclass
class Manifest:
    """``runs/<run_id>/run.json``, rewritten at every change, so that a crash leaves a true picture of what was going on."""

    store: Store
    content: dict[str, Any]

    @classmethod
    def open(cls, store: Store, plan: Plan, config: MethodConfig, flow_run: FlowRun, places: Places) -> Manifest:
        """A new one; or that of the same flow run, which waited for a person: what it has finished stays as it was."""
        found = (m for m in waiting(store) if m.content["flow_run_id"] == flow_run.id) if flow_run.is_again else iter(())
        manifest = next(found, None)
        if manifest is None:
            return cls.create(store, plan, config, flow_run, places)
        old = {entry["label"]: entry for entry in manifest.content["stages"]}
        stages = [old[s.label] if s.cached and s.label in old and old[s.label]["digest"] == s.digest else _pending(s) for s in plan.stages]
        manifest.update(status="running", finished=None, error=None, stages=stages, process=_this_process())
        return manifest

    @classmethod
    def create(cls, store: Store, plan: Plan, config: MethodConfig, flow_run: FlowRun, places: Places) -> Manifest:
        run_id = f"{config.project}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        content = {
            "run_id": run_id,
            "flow": flow_run.flow,
            "name": flow_run.name,
            "project": config.project,
            "config": config.model_dump(mode="json", by_alias=True),
            "flow_run_id": flow_run.id,
            "process": _this_process(),
            "started": time.time(),
            "finished": None,
            "status": "running",
            "error": None,
            "decision": None,
            "remark": None,
            "decided_by": None,
            "deadline": None,
            "tracker_run": None,
            "links": {"prefect": flow_run.url(places), "mlflow": places.mlflow_uri, "ray": places.ray_dashboard},
            "stages": [_pending(stage) for stage in plan.stages],
        }
        manifest = cls(store, content)
        manifest.save()
        return manifest

    @property
    def run_id(self) -> str:
        return self.content["run_id"]

    def stage(self, label: str, **facts: Any) -> None:
        entry = self._entry(label)
        entry |= facts
        self.save()

    def finish(self, label: str, result: dict[str, Any], *, state: str, seconds: float) -> None:
        """A stage has ended well; ``notes`` are what it wants people to know about the data (a leak, no shift at all, …)."""
        self.stage(label, state=state, seconds=seconds, notes=result["facts"].get("warnings", []))
        if result["stage"] == "promote":
            facts = result["facts"]
            audit = facts.get("audit") or {}
            self.update(decision=facts["decision"], decided_by=None if facts.get("waits") else audit.get("who"))

    def is_finished(self, label: str) -> bool:
        """In this process or, before the run waited, in another."""
        return self._entry(label)["state"] in ("ran", "cached")

    def is_pending(self, label: str) -> bool:
        """Not even tried."""
        return self._entry(label)["state"] == "pending"

    def update(self, **facts: Any) -> None:
        self.content |= facts
        self.save()

    def _entry(self, label: str) -> dict[str, Any]:
        return next(entry for entry in self.content["stages"] if entry["label"] == label)

    def save(self) -> None:
        self.store.write_json(f"runs/{self.run_id}/run.json", self.content)


def _this_process() -> dict[str, Any]:
    """By which ``flows/upkeep/reap.py`` sees whether somebody still closes this run."""
    return {"host": socket.gethostname()} | RecordedProcess.current().model_dump(include={"pid", "created", "boot", "since_boot"})


def _pending(stage: PlannedStage) -> dict[str, Any]:
    named = {"stage": stage.stage, "label": stage.label, "round": stage.round, "digest": stage.digest, "reason": stage.reason}
    return named | {"state": "pending", "seconds": None, "mlflow_run_id": None, "submission_id": None, "notes": []}


def manifests(store: Store) -> Iterator[Manifest]:
    """Of all runs; those of a project newest first."""
    for run_id in reversed(store.list("runs")):
        content = store.read_json(f"runs/{run_id}/run.json")
        if content is not None:
            yield Manifest(store, content)


def waiting(store: Store) -> Iterator[Manifest]:
    """Of the runs that wait for a person."""
    return (manifest for manifest in manifests(store) if manifest.content["status"] == "waiting")


def notes(manifest: Mapping[str, Any]) -> list[str]:
    """``"calibrate: no source can be told from golden: …"``: what the stages of a run want people to know."""
    return [f"{stage['label']}: {note}" for stage in manifest["stages"] for note in stage["notes"]]

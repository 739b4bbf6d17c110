"""Writes a run's manifest (:class:`flows.run_record.RunRecord`) at every change, so that it is up to date after a crash."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from flows.config.models import MethodConfig
from flows.planning.planned_stage import Plan, PlannedStage
from flows.run_record import UNCHANGED, Links, ProcessRecord, RunRecord, StageRecord, StageState, read_record, read_records, write_record
from infra.processes import RecordedProcess
from infra.settings import Places
from infra.store.json_files import StoredResult
from infra.store.store import Store
from tasks.stages import promote
from tasks.stages.registry import parse_result


@dataclass(frozen=True)
class FlowRun:
    """The Prefect flow run that a session belongs to.

    Attributes:
        id: empty for a run without work that Prefect was not needed for.
        is_again: whether it continues after a suspension, in another process.
        command: what starts the same run again; empty for a flow run of a worker.
    """

    flow: str
    id: str
    name: str
    is_again: bool = False
    command: str = ""

    def url(self, places: Places) -> str | None:
        """Return its page; None without a server."""
        return f"{places.prefect_ui}/runs/flow-run/{self.id}" if places.prefect_ui and self.id else None


@dataclass
class Manifest:
    """The manifest of the run in this process; :attr:`run` is the content of the file."""

    store: Store
    run: RunRecord
    _opened: tuple[float, float] = field(default_factory=lambda: (time.time(), _uptime()))

    def now(self) -> float:
        """Return epoch seconds that no change of the clock since the manifest was opened moves: durations stay right."""
        wall, uptime = self._opened
        return wall + _uptime() - uptime

    @classmethod
    def open(cls, store: Store, plan: Plan, config: MethodConfig, flow_run: FlowRun, places: Places) -> Manifest:
        """Write a new manifest, or continue that of a suspended flow run with its finished stages."""
        found = (run for run in waiting(store) if run.flow_run_id == flow_run.id) if flow_run.is_again else iter(())
        before = next(found, None)
        if before is None:
            return cls.create(store, plan, config, flow_run, places)
        old = {entry.label: entry for entry in before.stages}
        stages = [old[s.label] if s.cached and s.label in old and old[s.label].digest == s.digest else _pending(s) for s in plan.stages]
        manifest = cls(store, before)
        waited = before.waited + max(0.0, time.time() - (before.finished or time.time()))
        manifest.update(status="running", finished=None, waited=waited, error=None, stages=stages, process=_this_process())
        return manifest

    @classmethod
    def create(cls, store: Store, plan: Plan, config: MethodConfig, flow_run: FlowRun, places: Places) -> Manifest:
        record = RunRecord(
            run_id=f"{config.project}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
            flow=flow_run.flow,
            name=flow_run.name,
            project=config.project,
            command=flow_run.command,
            config=config.model_dump(mode="json", by_alias=True),
            flow_run_id=flow_run.id or None,
            process=_this_process(),
            started=time.time(),
            status="running",
            links=_links(flow_run, places),
            stages=[_pending(stage) for stage in plan.stages],
        )
        manifest = cls(store, record)
        manifest.save()
        return manifest

    @property
    def run_id(self) -> str:
        return self.run.run_id

    def stage(self, label: str, **changes: Any) -> None:
        """Change fields of one stage's record."""
        stages = [stage.evolve(**changes) if stage.label == label else stage for stage in self.run.stages]
        self.update(stages=stages)

    def finish(self, label: str, result: StoredResult, *, state: StageState, seconds: float) -> None:
        """Record a stage that succeeded; ``notes`` are the warnings of its result (a leak in the data, no shift at all, …)."""
        facts = parse_result(result).facts
        self.stage(label, state=state, seconds=seconds, notes=facts.warnings)
        if isinstance(facts, promote.Facts):
            decision = UNCHANGED if state == "cached" else facts.decision
            who = None if state == "cached" or facts.waits or facts.audit is None else facts.audit.who
            self.update(decision=decision, decided_by=who, promotion=facts.model_dump(mode="json"))

    def record_cached(self, plan: Plan, on_finished: Callable[[PlannedStage, str, StoredResult], None], last_run: str | None) -> None:
        """Record every stage of a plan with nothing to run, and the page with their numbers: that of the project's last run.

        Args:
            on_finished: called with each stage, ``cached``, and its result.
            last_run: the project's last run.
        """
        before = read_record(self.store, last_run) if last_run else None
        if before is not None and before.links.mlflow:
            self.update(links=self.run.links.evolve(mlflow=before.links.mlflow))
        for stage in plan.stages:
            result = self.store.read_result(stage.stage, stage.digest)
            assert result is not None, f"{stage.label} is cached but has no result"
            self.finish(stage.label, result, state="cached", seconds=0.0)
            on_finished(stage, "cached", result)

    def update(self, **changes: Any) -> None:
        """Change fields of the run's record."""
        self.run = self.run.evolve(**changes)
        self.save()

    def save(self) -> None:
        write_record(self.store, self.run)


def _uptime() -> float:
    """Seconds of a clock that runs on while the machine sleeps, and that setting the time does not move."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _links(flow_run: FlowRun, places: Places) -> Links:
    ray = places.page(places.ray_dashboard) if places.ray_dashboard else None
    return Links(prefect=flow_run.url(places), mlflow=places.page(places.mlflow_uri), ray=ray)


def waiting(store: Store) -> Iterator[RunRecord]:
    """Yield the runs that wait for a person."""
    return (run for run in read_records(store) if run.status == "waiting")


def _this_process() -> ProcessRecord:
    """Return this process, by which ``flows/upkeep/reap.py`` recognises a run that is still closed by its own process."""
    return ProcessRecord.of(RecordedProcess.current(), socket.gethostname())


def _pending(stage: PlannedStage) -> StageRecord:
    return StageRecord(stage=stage.stage, label=stage.label, round=stage.round, digest=stage.digest, reason=stage.reason, state="pending")

"""One realignment or study while it runs: its plan, its manifest, its MLflow run and its Ray head, opened together and closed together.

The order of closing is a contract: Ray jobs first (``RayJobs.run`` has stopped its own on any exception), then the own Ray
head, then MLflow with an explicit status, then the manifest. :func:`release` does the same from outside, for a flow run
whose process is gone.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dora_core import plugins
from dora_core.errors import DoraError, RunStopped, ServiceError
from flows.config.models import MethodConfig
from flows.planning.plan import Plan, PlannedStage, write_latest
from flows.running.manifest import FlowRun, Manifest, manifests
from flows.running.round_runs import RoundRuns
from flows.running.shared_job import SharedJob
from infra.ray_head import RayHead
from infra.ray_jobs import RESUME, RayJobs
from infra.settings import Places, Settings, apply_environment
from infra.store.locks import free_abandoned, ownership
from infra.store.store import Store
from infra.tracking.tracker import Status, Tracker

if TYPE_CHECKING:
    from flows.running.approval import Question
    from tasks.stages.promote import Answer


class Suspends(Exception):
    """The run goes on when a person has answered; until then it needs no process, no GPU and no servers' attention."""

    def __init__(self, question: Question):
        super().__init__(f"waits for a decision about version {question.version} of {question.model}")
        self.question = question


class Observer:
    """Watches a run. This one watches nothing; the command line shows bars, a flow run on a server updates its artifacts."""

    def waiting(self, why: str) -> None: ...

    def planned(self, run_id: str, plan: Plan) -> None: ...

    def started(self, stage: PlannedStage) -> None: ...

    def event(self, stage: PlannedStage, event: dict[str, Any]) -> None: ...

    def log(self, stage: PlannedStage, line: str) -> None: ...

    def finished(self, stage: PlannedStage, state: str, result: dict[str, Any] | None) -> None: ...

    def decide(self, question: Question) -> Answer | None:
        """What the person who watches decides; None = nobody does, or not now."""
        return None


@dataclass(frozen=True)
class Command:
    """What a command hands to the flow it runs in its own process; unset in a flow run started by a worker."""

    places: Places
    observer: Observer


COMMAND: ContextVar[Command | None] = ContextVar("dora_command", default=None)


@dataclass
class Ray:
    """The Ray cluster of a run: a given one, or an own head that is started in the background, again if it dies, and stopped at the end."""

    settings: Settings
    places: Places
    _head: Future[RayHead] | None = None
    _start: Callable[[], RayHead] | None = None

    def warm_up(self, name: str, cpus: int) -> None:
        """Start the own head now, so that it is there when the first job stage needs it; nothing to do with a given cluster.

        Args:
            cpus: what the widest stage asks for; a small machine then shares its cores instead of waiting for more of them.
        """
        if self.is_own:
            folder = self.settings.ray_folder
            RayHead.stop_orphans(folder)
            self._start = partial(RayHead.start, folder / name, num_cpus=max(cpus, os.cpu_count() or 1))
            self._launch()

    @property
    def is_own(self) -> bool:
        """Nobody else's jobs run there."""
        return self.places.ray_dashboard is None

    def jobs(self) -> RayJobs:
        """The Jobs API; waits for the own head if it is still starting, and starts another where it has died.

        Raises:
            ServiceError: the own head did not come up.
        """
        if self._head is None:
            assert self.places.ray_dashboard is not None, "a plan without job stages asked for Ray"
            given = self.places.ray_dashboard, self.places.ray_environment
            return RayJobs(*given, job_environment=plugins.environment(), log_folder=self.settings.log_folder)
        if not self._head.result().alive():
            self._launch()
        head = self._head.result()
        return RayJobs(
            head.dashboard_url,
            head.environment(),
            job_environment=plugins.environment(),
            log_folder=self.settings.log_folder,
            is_alive=head.alive,
        )

    def close(self) -> None:
        if self._head is not None:
            with suppress(ServiceError):  # whoever asked for the head has seen that error
                head = self._head.result()
                head.stop()
                shutil.rmtree(head.folder, ignore_errors=True)
            self._head = None

    def _launch(self) -> None:
        assert self._start is not None, "an own head is started by warm_up"
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray-head")
        self._head = pool.submit(self._start)  # which first ends what a dead head left
        pool.shutdown(wait=False)


@dataclass
class Session:
    """See the module docstring; a context manager around the stages of one run."""

    config: MethodConfig
    settings: Settings
    store: Store
    plan: Plan
    manifest: Manifest
    tracker: Tracker
    parent_run: str
    ray: Ray
    observer: Observer
    on_server: bool
    rounds: RoundRuns
    warnings: list[str] = field(default_factory=list)
    tracked: dict[str, str] = field(default_factory=dict)
    """Label of a stage → the tracker's id of its run."""
    _shared_jobs: dict[tuple[str, ...], SharedJob] = field(default_factory=dict)

    @classmethod
    def open(
        cls, config: MethodConfig, build: Callable[[Store, Places], Plan], flow_run: FlowRun, observer: Callable[[], Observer]
    ) -> Session:
        """Plan the run and open what it needs; nothing heavy starts for a run that has nothing to do.

        Args:
            build: makes the plan.
            observer: makes the observer of a run that no command watches.
        """
        command = COMMAND.get()
        settings = Settings()
        places = command.places if command else apply_environment(settings)
        store = Store(settings.store_uri)
        plan = build(store, places)
        manifest = Manifest.open(store, plan, config, flow_run, places)
        plan = plan.checked(store)
        watching = command.observer if command else observer()
        watching.planned(manifest.run_id, plan)

        local = places.mlflow_uri.startswith("sqlite") and settings.back_ends.artifacts is None
        artifacts = settings.mlflow_artifacts if local else None
        history = settings.mlflow_history(places.mlflow_uri)
        tracker = Tracker.open(places.mlflow_uri, config.project, settings.outbox, artifacts, history)
        tags = {
            "dora.run_id": manifest.run_id,
            "dora.git_sha": git_sha(),
            "dora.store": store.uri,
            "prefect.flow_run_id": flow_run.id,
            "prefect.flow_run_url": flow_run.url(places) or "",
        }
        tags |= {f"dora.digest.{s.label}": s.digest for s in plan.stages}
        known = manifest.content["tracker_run"]
        parent = tracker.start_run(flow_run.name, tags=tags, params=manifest.content["config"], continues=known)
        manifest.update(tracker_run=parent)
        for uri, digest in plan.inputs.items():
            tracker.log_input(parent, PurePosixPath(uri).name, uri, digest, "input")

        ray = Ray(settings, places)
        if plan.needs_ray:
            widths = [s.spec.execution.workers * s.spec.execution.cpus_per_worker for s in plan.to_run if not s.is_local]
            ray.warm_up(manifest.run_id, math.ceil(max(widths)))
        rounds = RoundRuns(tracker, parent, manifest.run_id)
        return cls(config, settings, store, plan, manifest, tracker, parent, ray, watching, command is None, rounds, list(plan.notes))

    def owning(self, stage: PlannedStage, tell: Callable[[str], None]) -> AbstractContextManager[bool]:
        """Compute ``stage`` in this run alone, after a wait of which ``tell`` is told; gives whether another run has done it by then."""
        is_done = partial(stage.spec.is_done, self.store)
        return ownership(self.store, stage.stage, stage.digest, self.manifest.run_id, is_done=is_done, tell=tell)

    def shared_job(self, stage: PlannedStage) -> SharedJob | None:
        """The job that ``stage`` shares with others of this run; None where it has one of its own, or needs none."""
        if stage.cached or not stage.is_small or not self.ray.is_own:
            return None
        stages = self.plan.neighbours(stage)
        key = tuple(other.digest for other in stages)
        if len(stages) > 1 and key not in self._shared_jobs:
            self._shared_jobs[key] = SharedJob(stages, self.store, self.ray.jobs, self.owning)
        return self._shared_jobs.get(key)

    def notify(self, happening: str, *facts: Any) -> None:
        """Tell the observer; one that breaks (a server that is away, a figure that is missing) is not worth a run."""
        try:
            getattr(self.observer, happening)(*facts)
        except Exception as error:
            warning = f"progress could not be shown: {type(error).__name__}: {error}"
            if warning not in self.warnings:
                self.warnings.append(warning)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Close in order. An exception that is no ``Exception`` (Ctrl-C, Prefect's termination signal) means: cancelled."""
        status = _status(error)
        for job in self._shared_jobs.values():
            job.close()
        self.ray.close()
        if status == "completed":
            write_latest(self.store, self.plan, self.manifest.run_id)
        described = None if error is None or status == "waiting" else _describe(error)
        told = {
            "dora.status": status,
            "dora.error": described and described["message"],
            "dora.decision": self.manifest.content["decision"],
            "dora.decided_by": self.manifest.content["decided_by"],
        }
        ended = _MLFLOW_STATUS[status]
        self.rounds.finish(ended)
        self.tracker.finish(self.parent_run, ended, {tag: value for tag, value in told.items() if value})
        self.warnings += self.tracker.close()
        for stage in self.manifest.content["stages"]:  # MLflow may have been away when the stage ended
            if run := self.tracked.get(stage["label"]):
                stage["mlflow_run_id"] = self.tracker.mlflow_id(run)
        links = self.manifest.content["links"]
        links |= {"mlflow": self.tracker.url(self.parent_run) or links["mlflow"]}
        self.manifest.update(status=status, finished=time.time(), error=described, links=links)


_MLFLOW_STATUS: dict[str, Status] = {
    "completed": "FINISHED",
    "waiting": "FINISHED",
    "failed": "FAILED",
    "stopped": "FAILED",
    "cancelled": "KILLED",
}


def release(settings: Settings, flow_run_id: str, why: str) -> bool:
    """Stop what a dead flow run left behind: its Ray jobs, its own head, its open MLflow runs. True if its manifest was found.

    Safe to repeat, and safe for a run that ended in order.

    Args:
        why: one clause for people, kept as the run's error.
    """
    store = Store(settings.store_uri)
    found = next((m.content for m in manifests(store) if m.content.get("flow_run_id") == flow_run_id), None)
    if found is not None and found["status"] == "running":
        end_abandoned(settings, store, found, why)
        close_manifest(store, found, why)
    return found is not None


def end_abandoned(settings: Settings, store: Store, content: dict[str, Any], why: str, *, keep: Collection[str] = ()) -> list[str]:
    """Stop what a run left behind whose process is gone. Safe to repeat.

    Args:
        content: of the manifest.
        why: it is over.
        keep: Ray submissions that others watch.

    Returns:
        The submissions of stages that were running.

    Raises:
        ServiceError: Ray is away.
    """
    places = settings.effective()
    left = [stage for stage in content["stages"] if stage["submission_id"] and stage["submission_id"] not in keep]
    if places.ray_dashboard is not None:
        jobs = RayJobs(places.ray_dashboard, places.ray_environment)
        for stage in left:
            jobs.stop(stage["submission_id"])
    RayHead.stop_orphans(settings.ray_folder)
    free_abandoned(store)
    history = settings.mlflow_history(places.mlflow_uri)
    Tracker.open(places.mlflow_uri, content["project"], settings.outbox, history=history).close()  # ends abandoned runs as KILLED
    return [stage["submission_id"] for stage in left if stage["state"] == "running"]


def close_manifest(store: Store, content: dict[str, Any], why: str) -> None:
    """Say in the manifest of an abandoned run that it is over. The last step: until then the next sweep finds it again."""
    for stage in content["stages"]:
        stage["state"] = "failed" if stage["state"] == "running" else stage["state"]
    Manifest(store, content).update(status="cancelled", finished=time.time(), error={"message": why, "hint": RESUME})


def _status(error: BaseException | None) -> str:
    if error is None:
        return "completed"
    if isinstance(error, Suspends):
        return "waiting"
    return "stopped" if isinstance(error, RunStopped) else "failed" if isinstance(error, Exception) else "cancelled"


def _describe(error: BaseException) -> dict[str, str]:
    if isinstance(error, DoraError):
        return {"message": error.message, "hint": error.hint}
    if not isinstance(error, Exception):
        return {"message": "stopped before it was finished", "hint": RESUME}
    return {"message": f"{type(error).__name__}: {error}".rstrip(": "), "hint": ""}


def git_sha() -> str:
    """Commit of the code that runs, ``-dirty`` if changed; "" for an installed package."""
    here = Path(__file__).parent
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=5, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""

"""One realignment or study while it runs: its plan, its manifest, its MLflow run and its Ray head, opened together and closed together.

The order of closing is a contract: Ray jobs first (``RayJobs.run`` has stopped its own on any exception), then the own Ray head, then
MLflow with an explicit status (it is in the outbox then, and sent even if this process is killed), then the manifest, then the report,
which is drawn from it. ``flows/running/abandoned.py`` does the same from outside, for a flow run whose process is gone.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from flows.config.models import MethodConfig
from flows.planning.latest import last_run, write_latest
from flows.planning.planned_stage import Plan, PlannedStage
from flows.running.manifest import FlowRun, Manifest
from flows.running.observer import Observer
from flows.running.ray_cluster import RayCluster
from flows.running.round_runs import RoundRuns
from flows.running.run_page import RunPage
from flows.running.shared_job import SharedJob
from flows.running.states import MLFLOW_STATUS, describe, status_after
from flows.running.surroundings import Surroundings
from infra.settings import Places, Settings
from infra.store.json_files import StoredResult
from infra.store.locks import ownership
from infra.store.store import Store
from infra.tracking.system_metrics import SystemMetrics
from infra.tracking.tracker import Tracker


@dataclass
class Session:
    """Shared state of the stages of one run; a context manager around them, see the module docstring.

    Attributes:
        parent_run: the tracker's id of the whole run; None for a run without work: its metrics are in MLflow since they were computed.
        tracked: the tracker's id of a stage's run, by label.
        warnings: failures to show, send or track something.
    """

    config: MethodConfig
    settings: Settings
    store: Store
    plan: Plan
    manifest: Manifest
    tracker: Tracker
    parent_run: str | None
    ray: RayCluster
    observer: Observer
    on_server: bool
    rounds: RoundRuns
    page: RunPage
    warnings: list[str] = field(default_factory=list)
    tracked: dict[str, str] = field(default_factory=dict)
    _load: SystemMetrics | None = None
    _shared_jobs: dict[tuple[str, ...], SharedJob] = field(default_factory=dict)

    @classmethod
    def open(cls, config: MethodConfig, plan: Plan, flow_run: FlowRun, here: Surroundings) -> Session:
        """Open manifest, MLflow run and Ray; a run without work starts no Ray head and no MLflow run."""
        settings, places, store = here.settings, here.places, here.store
        manifest = Manifest.open(store, plan, config, flow_run, places)
        plan = plan.checked(store)
        here.observer.planned(manifest.run_id, plan)

        local = places.mlflow_uri.startswith("sqlite") and settings.back_ends.artifacts is None
        artifacts = settings.mlflow_artifacts if local else None
        history = settings.mlflow_history(places.mlflow_uri)
        tracker = Tracker.open(places.mlflow_uri, config.project, settings.outbox, artifacts, history)
        parent = cls._tracked(tracker, manifest, flow_run, places) if plan.to_run else None
        ray = RayCluster(settings, places)
        ray.warm_up(manifest.run_id, plan)
        rounds = RoundRuns(tracker, parent, manifest.run_id)
        page = RunPage(tracker, parent, store, places, plan.inputs)
        servers = (ray, here.observer, here.on_server)
        session = cls(config, settings, store, plan, manifest, tracker, parent, *servers, rounds, page, list(plan.notes))
        if parent is not None:
            session._load = SystemMetrics(partial(tracker.log_metrics, parent))
            session._load.start()
        return session

    @staticmethod
    def _tracked(tracker: Tracker, manifest: Manifest, flow_run: FlowRun, places: Places) -> str:
        """Open the MLflow run of the whole run; returns the tracker's id."""
        tags = {
            "dora.run_id": manifest.run_id,
            "dora.git_sha": git_sha(),
            "dora.store": manifest.store.uri,
            "prefect.flow_run_id": flow_run.id,
            "prefect.flow_run_url": flow_run.url(places) or "",
        }
        record = manifest.run
        parent = tracker.start_run(flow_run.name, tags=tags, params=record.config, continues=record.tracker_run)
        manifest.update(tracker_run=parent)
        return parent

    def record_cached(self) -> None:
        """Record every stage as cached; for a plan with nothing to run."""
        self.manifest.record_cached(self.plan, partial(self.notify, "finished"), last_run(self.store, self.plan))

    def owning(self, stage: PlannedStage, on_wait: Callable[[str], None]) -> AbstractContextManager[bool]:
        """Hold the lock of ``stage``; yields whether another run has finished it. ``on_wait`` is called with a sentence per wait."""
        is_done = partial(stage.spec.is_done, self.store)
        return ownership(self.store, stage.stage, stage.digest, self.manifest.run_id, is_done=is_done, on_wait=on_wait)

    def shared_job(self, stage: PlannedStage) -> SharedJob | None:
        """Return the job that ``stage`` shares with others of this run; None if it needs a separate job or no job."""
        if stage.cached or not stage.is_small or not self.ray.is_own:
            return None
        stages = self.plan.neighbours(stage)
        key = tuple(other.digest for other in stages)
        if len(stages) > 1 and key not in self._shared_jobs:
            self._shared_jobs[key] = SharedJob(stages, self.store, self.ray.jobs, self.owning)
        return self._shared_jobs.get(key)

    def notify(self, callback: str, *facts: Any) -> None:
        """Call a method of the observer; a failure there (a server that is away, a missing key) becomes a warning."""
        try:
            getattr(self.observer, callback)(*facts)
        except Exception as error:
            warning = f"progress could not be shown: {type(error).__name__}: {error}"
            if warning not in self.warnings:
                self.warnings.append(warning)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Close in the order of the module docstring."""
        status = status_after(error)
        for job in self._shared_jobs.values():
            job.close()
        self.ray.close()
        if status == "completed":
            write_latest(self.store, self.plan, self.manifest.run_id)
        described = None if error is None or status == "waiting" else describe(error)
        if self._load is not None:
            self._load.close()
        if self.parent_run is not None:
            ended = MLFLOW_STATUS[status]
            self.rounds.finish(ended)
            self.tracker.finish(self.parent_run, ended, self.page.ended(self.manifest.run.evolve(status=status, error=described)))
        self.manifest.update(status=status, finished=self.manifest.now(), error=described)
        if (warning := self.page.report(self.manifest.run)) is not None:
            self.warnings.append(warning)
        self.warnings += self.tracker.close()
        # MLflow may have been away when a stage ended: only now are all its run ids known.
        known = {label: self.tracker.mlflow_id(run) for label, run in self.tracked.items()}
        stages = [s.evolve(mlflow_run_id=known[s.label]) if s.label in known else s for s in self.manifest.run.stages]
        links = self.manifest.run.links
        links = links.evolve(mlflow=self.url or links.mlflow)
        self.manifest.update(links=links, stages=stages)

    @property
    def url(self) -> str | None:
        """Page of the whole run in MLflow; None without a server, or without an MLflow run."""
        url = None if self.parent_run is None else self.tracker.url(self.parent_run)
        return None if url is None else self.ray.places.page(url)

    def log_stage(self, stage: PlannedStage, result: StoredResult, images: Mapping[str, bytes] | None = None) -> None:
        """Log a finished stage on the MLflow run of the whole run.

        Args:
            images: its figures; None for a cached stage.
        """
        try:
            self.rounds.log(stage, result)
            self.page.stage(stage, result, images)
        except Exception as error:  # a figure of an old result that cannot be drawn must not fail a run
            self.warnings.append(f"MLflow's page lacks {stage.label}: {type(error).__name__}: {error}")


def git_sha() -> str:
    """Return the commit of the code that runs, ``-dirty`` if changed; "" for an installed package."""
    here = Path(__file__).parent
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=5, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""

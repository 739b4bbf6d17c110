"""Clean-up after a run whose process is gone, in the order in which :class:`flows.running.session.Session` closes."""

from __future__ import annotations

import time
from collections.abc import Collection

from flows.run_record import ErrorRecord, RunRecord, StageRecord, read_records, write_record
from infra.ray_head import RayHead
from infra.ray_jobs import RESUME, RayJobs
from infra.settings import Settings
from infra.store.locks import free_abandoned
from infra.store.store import Store
from infra.tracking.tracker import Tracker


def release(settings: Settings, flow_run_id: str, why: str) -> bool:
    """Stop the Ray jobs, the own head and the open MLflow runs of a dead flow run. Returns whether its manifest was found.

    Idempotent; a run that ended normally is left alone.

    Args:
        why: one clause, kept as the run's error.
    """
    store = Store(settings.store_uri)
    found = next((record for record in read_records(store) if record.flow_run_id == flow_run_id), None)
    if found is not None and found.status == "running":
        end_abandoned(settings, store, found, keep=())
        close_manifest(store, found, why)
    return found is not None


def end_abandoned(settings: Settings, store: Store, run: RunRecord, *, keep: Collection[str]) -> list[str]:
    """Stop the Ray jobs, the own head, the locks and the MLflow runs of a run whose process is gone. Idempotent.

    Args:
        keep: Ray submissions that other runs watch.

    Returns:
        The submissions of stages that were running.

    Raises:
        ServiceError: Ray is away.
    """
    places = settings.effective()
    left = [(stage, id_) for stage in run.stages if (id_ := stage.submission_id) and id_ not in keep]
    if places.ray_dashboard is not None:
        jobs = RayJobs(places.ray_dashboard, places.ray_environment)
        for _, submission_id in left:
            jobs.stop(submission_id)
    RayHead.stop_orphans(settings.ray_folder)
    free_abandoned(store)
    history = settings.mlflow_history(places.mlflow_uri)
    Tracker.open(places.mlflow_uri, run.project, settings.outbox, history=history).close()  # ends abandoned runs as KILLED
    return [submission_id for stage, submission_id in left if stage.state == "running"]


def close_manifest(store: Store, run: RunRecord, why: str) -> None:
    """Record in the manifest of an abandoned run that it is over. The last step: until then the next sweep finds the run again."""
    stages = [_closed(stage) for stage in run.stages]
    error = ErrorRecord(message=why, hint=RESUME)
    write_record(store, run.evolve(status="cancelled", finished=time.time(), error=error, stages=stages))


def _closed(stage: StageRecord) -> StageRecord:
    return stage.evolve(state="failed") if stage.state == "running" else stage

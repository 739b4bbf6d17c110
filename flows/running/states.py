"""States of a run: status in its manifest, status in MLflow, and the custom state names in Prefect."""

from __future__ import annotations

from dora_core.errors import DoraError, RunStopped
from flows.run_record import ErrorRecord, RunStatus
from flows.running.question import Suspends
from infra.ray_jobs import RESUME
from infra.tracking.outbox import Status

STOPPED = "Stopped"
"""Failed state of a flow run that a guard rail ended: not a failure, and announced by a separate event."""
CACHED = "Cached"
"""Completed state of a task whose stage was not computed."""
WAITING = "Waiting"
"""Running state of a flow run that waits for slots of ``dora-gpus``."""
RESUMING = "Resuming"
"""Scheduled state of a suspended flow run whose question has expired."""

MLFLOW_STATUS: dict[RunStatus, Status] = {
    "completed": "FINISHED",
    "waiting": "FINISHED",
    "failed": "FAILED",
    "stopped": "FAILED",
    "cancelled": "KILLED",
}


def status_after(error: BaseException | None) -> RunStatus:
    """Return the status of a run that ended with ``error``. An exception outside ``Exception`` (Ctrl-C, Prefect's termination signal)
    means: cancelled."""
    if error is None:
        return "completed"
    if isinstance(error, Suspends):
        return "waiting"
    return "stopped" if isinstance(error, RunStopped) else "failed" if isinstance(error, Exception) else "cancelled"


def describe(error: BaseException) -> ErrorRecord:
    """Return an error as the manifest keeps it."""
    if isinstance(error, DoraError):
        return ErrorRecord(message=error.message, hint=error.hint)
    if not isinstance(error, Exception):
        return ErrorRecord(message="stopped before it was finished", hint=RESUME)
    return ErrorRecord(message=f"{type(error).__name__}: {error}".rstrip(": "))

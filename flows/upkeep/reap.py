"""The flow ``reap`` and ``dora reap``: clean up after runs whose process is gone.

A run that ends normally closes itself, and Prefect's hooks close one that was cancelled or crashed under a worker
(:func:`flows.running.abandoned.release`). This flow closes the others, after ``kill -9``, the loss of a machine, or the outage of a server.
The manifest of such a run (``runs/<run_id>/run.json``) still has the status "running". The run is over if its flow run has ended in
Prefect, or if it ran on this machine and its process is gone. Then its Ray jobs are stopped unless a live run watches them, its MLflow runs
end as KILLED, its manifest as cancelled, with the reason, and its flow run in Prefect as crashed. Where no servers run, the next command
does the same first.

A run that missed a cancel request gets the signal that its worker would have sent: Prefect's watcher of a run ends for good after an
outage of half a minute, and a command has no watcher. A run that a worker took and did not start, because the worker was killed
in between, is set to Crashed.

Left out: runs on other machines that are Running in Prefect: they may be alive.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import flow
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Crashed, Failed

from dora_core.errors import DoraError, ServiceError
from flows.deployment.automations import AGAIN, PENDING_LIMIT, TAG
from flows.run_record import ProcessRecord, RunRecord, read_records
from flows.running.abandoned import close_manifest, end_abandoned
from flows.running.approval import end_overdue
from flows.running.gpu_slots import LEASE_SECONDS, LIMIT, read_runs
from flows.running.task_runs import end_task_runs
from infra.prefect_api import connected, own_prefect_api
from infra.processes import RecordedProcess, terminate_tree
from infra.ray_jobs import RESUME
from infra.settings import Places, Settings, apply_environment
from infra.store.store import Store
from infra.tracking.mlflow_client import mlflow_client
from infra.tracking.tracker import Tracker

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

UNHEARD_SECONDS = 60.0
"""Longest time in state Cancelling: a run that gets the request ends within seconds, its jobs' checkpoints included."""
STOPPING_SECONDS = 45.0
"""Time for a run to stop its jobs and report; then it is killed, and cleaned up after like any killed run."""


@dataclass
class Reaped:
    """Changes that a sweep has made, or would make.

    Attributes:
        runs: ``{run id: reason}`` of ended runs.
        unheard: runs that missed a cancel request, and have been stopped.
        never_began: flow runs that a worker claimed and did not start.
        jobs, mlflow_runs: Ray submissions and MLflow runs that were still open.
        overdue: runs whose question has expired; they continue, and end as not promoted.
        slots: slots of ``dora-gpus`` without a holder.
        waiting: updates that MLflow does not have yet, because it is away.
        problems: runs that could not be ended, and why; the next sweep tries again.
    """

    runs: dict[str, str] = field(default_factory=dict)
    unheard: list[str] = field(default_factory=list)
    never_began: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    mlflow_runs: list[str] = field(default_factory=list)
    overdue: list[str] = field(default_factory=list)
    slots: int = 0
    waiting: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report as text."""
        lines = [f"{run_id}: ended, {why}" for run_id, why in self.runs.items()]
        lines += [f"cancelled, as requested: {', '.join(self.unheard)}"] if self.unheard else []
        lines += [f"taken by a worker that is gone: {', '.join(self.never_began)}"] if self.never_began else []
        lines += [f"stopped Ray jobs: {', '.join(self.jobs)}"] if self.jobs else []
        lines += [f"closed {len(self.mlflow_runs)} MLflow runs"] if self.mlflow_runs else []
        lines += [f"no answer in time: {', '.join(self.overdue)}"] if self.overdue else []
        lines += [f"freed {self.slots} slots of {LIMIT} without a holder"] if self.slots else []
        return [*lines, *self.waiting, *self.problems] or ["nothing is left over"]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@flow(name="reap", flow_run_name="reap", persist_result=False)
def reap() -> State[Reaped]:
    """Clean up after runs whose process is gone: Ray jobs, MLflow runs, slots. Live runs are left alone; safe to repeat."""
    settings = Settings()
    reaped = sweep(settings, apply_environment(settings))
    for line in reaped.lines():
        get_run_logger().log(logging.WARNING if line in (*reaped.waiting, *reaped.problems) else logging.INFO, line)
    ended = Failed if reaped.problems else Completed
    return ended(message="; ".join(reaped.lines()), data=reaped)


def sweep(settings: Settings, places: Places, *, dry_run: bool = False) -> Reaped:
    """End dead runs, expired questions and orphaned slots, and send waiting updates to MLflow; see the module docstring.

    Args:
        places: of ``settings``; without a Prefect server only runs of this machine are checked.
        dry_run: report; end nothing.
    """
    reaped = _sweep_here(settings, places, dry_run) if places.prefect_api_url is None else _sweep_server(settings, places, dry_run)
    reaped.waiting = [] if dry_run else _send_waiting(settings, places)
    return reaped


def _sweep_server(settings: Settings, places: Places, dry_run: bool) -> Reaped:
    assert places.prefect_api_url is not None
    with connected(places.prefect_api_url) as client:
        unheard = [] if dry_run else _stop_unheard(Store(settings.store_uri), client)
        reaped = end_dead_runs(settings, places, client, dry_run=dry_run)
        reaped.unheard = unheard
        reaped.never_began = _end_never_begun(client, dry_run)
        reaped.overdue = [] if dry_run else end_overdue(settings)
        reaped.slots = _free_slots(client, dry_run)
    return reaped


def _sweep_here(settings: Settings, places: Places, dry_run: bool) -> Reaped:
    """Sweep without a server: Prefect's history is a file, and a change in it needs a private API for a moment."""
    found = end_dead_runs(settings, places, None, dry_run=True)
    if dry_run or not found.runs:
        return found
    with own_prefect_api(settings) as wait:
        wait()
        return end_dead(settings)


def end_dead(settings: Settings) -> Reaped:
    """End the runs that are over, also in the Prefect API of this command."""
    with connected(os.environ["PREFECT_API_URL"]) as client:
        return end_dead_runs(settings, settings.effective(), client)


def end_dead_runs(settings: Settings, places: Places, client: SyncPrefectClient | None, *, dry_run: bool = False) -> Reaped:
    """End the runs that are over although their manifest has status "running".

    Args:
        client: None without a Prefect server.
    """
    store, reaped = Store(settings.store_uri), Reaped()
    open_runs = _open_runs(store)
    flow_runs = {run.run_id: _flow_run(client, run.flow_run_id) for run in open_runs}
    over = {}
    for run in open_runs:
        flow_run = flow_runs[run.run_id]
        why = why_over(run.process, flow_run.state if flow_run else None)
        if why is not None:
            over[run.run_id] = why
    live = [run for run in open_runs if run.run_id not in over]
    watched = {job for run in live for job in run.submissions}
    continued = {run.flow_run_id for run in live}  # in another process, after a retry
    for run in open_runs:
        if run.run_id not in over:
            continue
        why = over[run.run_id]
        if not dry_run:
            try:
                reaped.jobs += end_abandoned(settings, store, run, keep=watched)
                if client is not None and run.flow_run_id not in continued:
                    _end_flow_run(client, flow_runs[run.run_id], why)
                reaped.mlflow_runs += close_mlflow_runs(places.mlflow_uri, run.project, run.run_id, why)
                close_manifest(store, run, why)
            except DoraError as error:
                reaped.problems.append(f"{run.run_id}: {why}, but it could not be ended: {error.message}")
                continue
        reaped.runs[run.run_id] = why
    return reaped


def why_over(process: ProcessRecord | None, state: State | None) -> str | None:
    """Return the reason why a run with status "running" is over; None if it may be alive.

    Args:
        process: host, process id and creation time of the manifest; None in one of an older version.
        state: of its flow run; None if Prefect does not have it, or without a server.
    """
    ours = _ours(process)
    if ours is not None and ours.alive():
        return None
    if state is not None and state.is_final():
        return f"its flow run is {state.name}"
    # A suspended or rescheduled flow run has no process, and continues later.
    if ours is not None and (state is None or state.is_running() or state.is_cancelling()):
        return "its process is gone"
    return None


def close_mlflow_runs(uri: str, project: str, run_id: str, why: str) -> list[str]:
    """End the open MLflow runs of a run that is over as KILLED, with the reason; returns their ids.

    Raises:
        ServiceError: MLflow is away.
    """
    client = mlflow_client(uri)
    from mlflow.exceptions import MlflowException

    try:
        experiment = client.get_experiment_by_name(project)
        if experiment is None:
            return []
        query = f"attributes.status = 'RUNNING' and tags.`dora.run_id` = '{run_id}'"
        found = [run.info.run_id for run in client.search_runs([experiment.experiment_id], filter_string=query, max_results=1000)]
        for each in found:
            client.set_tag(each, "dora.error", why)
            client.set_terminated(each, "KILLED", end_time=int(time.time() * 1000))
    except MlflowException as error:
        raise ServiceError(f"MLflow does not answer: {str(error).splitlines()[0]}", hint="start it with `dora up`") from error
    return found


def _send_waiting(settings: Settings, places: Places) -> list[str]:
    """Send the MLflow updates of runs that ended while it was away; returns warnings about those that still wait."""
    if not any(settings.outbox.glob("*.jsonl")):
        return []
    return Tracker.open(places.mlflow_uri, "default", settings.outbox, history=settings.mlflow_history(places.mlflow_uri)).close()


def _open_runs(store: Store) -> list[RunRecord]:
    """Return the runs with status "running" in their manifest."""
    return [run for run in read_records(store) if run.status == "running"]


def _ours(process: ProcessRecord | None) -> RecordedProcess | None:
    """Return the process of a manifest; None if it belongs to another machine."""
    return None if process is None or process.host != socket.gethostname() else process.recorded()


def _stop_unheard(store: Store, client: SyncPrefectClient) -> list[str]:
    """Stop the runs of this machine that have been "cancelling" for too long, in order if they can; returns their ids."""
    stopped = []
    for run in _open_runs(store):
        process, flow_run = _ours(run.process), _flow_run(client, run.flow_run_id)
        if process is None or flow_run is None or flow_run.state is None or not flow_run.state.is_cancelling():
            continue
        if flow_run.state.timestamp > datetime.now(UTC) - timedelta(seconds=UNHEARD_SECONDS):
            continue
        if terminate_tree([process], grace=STOPPING_SECONDS):
            client.set_flow_run_state(flow_run.id, Cancelled(message=f"cancelled; {RESUME}"), force=True)
            end_task_runs(client, flow_run.id, "cancelled")
            stopped.append(run.run_id)
    return stopped


def _end_never_begun(client: SyncPrefectClient, dry_run: bool) -> list[str]:
    """Set flow runs of process pools to Crashed that have been pending for too long; returns their names."""
    processes = {pool.name for pool in client.read_work_pools() if pool.type == "process"}
    pending = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING])), tags=FlowRunFilterTags(all_=[TAG])
        )
    )
    since = datetime.now(UTC) - PENDING_LIMIT
    over = [run for run in pending if run.work_pool_name in processes and run.state is not None and run.state.timestamp < since]
    for run in [] if dry_run else over:
        client.set_flow_run_state(run.id, Crashed(message=f"not started within {PENDING_LIMIT}: {AGAIN}"), force=True)
    return [run.name for run in over]


def _flow_run(client: SyncPrefectClient | None, flow_run_id: str | None) -> FlowRun | None:
    if client is None or flow_run_id is None:
        return None
    try:
        return client.read_flow_run(UUID(flow_run_id))
    except ObjectNotFound:
        return None


def _end_flow_run(client: SyncPrefectClient, flow_run: FlowRun | None, why: str) -> None:
    """Set the final state of a flow run whose process is gone and cannot do so itself."""
    if flow_run is None or flow_run.state is None:
        return
    if not flow_run.state.is_final():
        ended = Cancelled if flow_run.state.is_cancelling() else Crashed
        client.set_flow_run_state(flow_run.id, ended(message=f"{why}; its jobs have been ended; {RESUME}"), force=True)
    end_task_runs(client, flow_run.id, why)


def _free_slots(client: SyncPrefectClient, dry_run: bool) -> int:
    """Free slots that a restarted server counts although their leases were lost; returns their number. Does nothing while a run is active
    or has ended so lately that its lease may be alive."""
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

    try:
        taken = client.read_global_concurrency_limit_by_name(LIMIT).active_slots
    except ObjectNotFound:
        return 0
    since = datetime.now(UTC) - timedelta(seconds=2 * LEASE_SECONDS)
    if not taken or read_runs(client, active=True) or any(run.end_time and run.end_time > since for run in read_runs(client, active=False)):
        return 0
    if not dry_run:
        client.update_global_concurrency_limit(LIMIT, GlobalConcurrencyLimitUpdate(active_slots=0))
    return taken

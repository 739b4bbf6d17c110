"""Turns of runs that compete for the same machines: the global concurrency limit ``dora-gpus`` of the Prefect server.

A run on a server that has heavy stages to run holds slots of it around all its stages: as many as its widest stage has GPUs, at least one.
``dora deploy`` creates the limit, with the number of GPUs. A run that must wait shows this in its state and its log, and plans anew when
its turn comes: the run before may have computed its stages. A slot is a lease that the run renews, so the slot of a dead run is free after
a minute. A suspended run (``promotion.mode: ask``) holds no slot.

A server that is away for two minutes fails no run: waiting runs keep waiting; holders keep their slots. If it is away for longer than a
lease, another run may get the slots meanwhile.

A command without servers takes no slot: it uses this machine alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from httpx import HTTPStatusError, RequestError
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import TERMINAL_STATES, ConcurrencyLeaseHolder, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import flow_run as this_run
from prefect.states import Running

from dora_core.errors import ServiceError
from flows.running.states import WAITING

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

    from flows.planning.planned_stage import Plan
    from flows.running.surroundings import Surroundings

LIMIT = "dora-gpus"
LEASE_SECONDS = 60.0
"""Until the slot of a dead run is free: Prefect's minimum; a live run renews it every 45 s."""
POLL_SECONDS = 3.0
AWAY_SECONDS = 120.0
"""Longest outage of the server that a run waits for while it acquires slots."""
LOCKED = 423
"""HTTP: all slots are taken."""
FLOWS = ["realign", "calibrate", "self-train", "study", "tune"]
"""Flows whose runs hold slots."""


@contextmanager
def gpu_slot(here: Surroundings, build: Callable[[], Plan]) -> Iterator[Plan]:
    """Plan, and hold slots while the block runs, if this run needs any; see the module docstring.

    Args:
        here: of this run.
        build: makes the plan.

    Yields:
        The plan; made anew after a wait.

    Raises:
        ServiceError: the server has no such limit, or one of 0.
    """
    plan = build()
    if here.places.prefect_api_url is None or not plan.needs_ray:
        yield plan
        return
    with _held(gpus_of(plan), here.observer.waiting) as waited:
        yield build() if waited else plan


def gpus_of(plan: Plan) -> int:
    """Return the GPUs of the widest stage that runs; at least 1."""
    widths = (stage.spec.execution.workers * stage.spec.execution.gpus_per_worker for stage in plan.to_run if not stage.is_local)
    return max(1, math.ceil(max(widths, default=0)))


@contextmanager
def _held(slots: int, on_wait: Callable[[str], None]) -> Iterator[bool]:
    """Hold ``slots``, or all there are if that is less. Yields whether the run had to wait; ``on_wait`` is called with the reason.

    Waiting here, not in Prefect's client, ends at once when the run is cancelled, and polls every few seconds instead of twice a minute.
    """
    run_id, log, waited = UUID(this_run.id), get_run_logger(), False
    away: float | None = None  # since when the server has been silent
    with get_client(sync_client=True) as client, ExitStack() as held:
        slots = min(slots, _size(client))
        holder = ConcurrencyLeaseHolder(type="flow_run", id=run_id)
        while True:
            try:
                # A short outage of the server must not end hours of training: a lease that cannot be renewed does not end the run.
                slot = concurrency(
                    LIMIT,
                    occupy=slots,
                    strict=True,
                    max_retries=0,
                    lease_duration=LEASE_SECONDS,
                    raise_on_lease_renewal_failure=False,
                    holder=holder,
                )
                slot.__enter__()
                held.callback(_give_back, slot)
                break
            except ConcurrencySlotAcquisitionError as error:
                if isinstance(error.__cause__, RequestError) and (away := away or time.monotonic()) + AWAY_SECONDS > time.monotonic():
                    time.sleep(POLL_SECONDS)
                    continue
                if not (isinstance(error.__cause__, HTTPStatusError) and error.__cause__.response.status_code == LOCKED):
                    raise ServiceError(f"no slot of {LIMIT}: {error}", hint="`dora deploy` mends the limit", retryable=False) from error
            away = None
            if not waited:
                waited, others = True, _holders(client, run_id)
                why = f"waits for {slots} of {LIMIT}: taken by {', '.join(others) or 'a run that has ended'}"
                log.info(why)
                on_wait(why)
                client.set_flow_run_state(run_id, Running(name=WAITING, message=why))
            time.sleep(POLL_SECONDS)
        if waited:
            log.info("it is this run's turn")
            client.set_flow_run_state(run_id, Running())
        yield waited


def _give_back(slot: AbstractContextManager[None]) -> None:
    try:
        slot.__exit__(None, None, None)
    except RequestError as error:  # the run itself has succeeded
        get_run_logger().warning(f"the slot of {LIMIT} will be free in a minute: {type(error).__name__}: {error}")


def _size(client: SyncPrefectClient) -> int:
    """Return the size of the limit.

    Raises:
        ServiceError: no such limit, or one of 0.
    """
    try:
        limit = client.read_global_concurrency_limit_by_name(LIMIT).limit
    except ObjectNotFound:
        raise ServiceError(
            f"the Prefect server {client.api_url} has no concurrency limit {LIMIT!r}", hint="`dora deploy` creates it", retryable=False
        ) from None
    if limit == 0:
        hint = "`dora deploy --limit 1` raises it"
        raise ServiceError(f"the concurrency limit {LIMIT!r} is 0: nothing may run", hint=hint, retryable=False)
    return limit


def read_runs(client: SyncPrefectClient, *, active: bool) -> list[FlowRun]:
    """Return the server's flow runs that may hold slots now, or the last ones that did.

    Args:
        active: running and cancelling runs; else the 20 that ended last.
    """
    states = [StateType.RUNNING, StateType.CANCELLING] if active else list(TERMINAL_STATES)
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=FLOWS)),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states))),
        sort=FlowRunSort.END_TIME_DESC,
        limit=None if active else 20,
    )


def _holders(client: SyncPrefectClient, but: UUID) -> list[str]:
    """Return the names of the other runs that do not wait."""
    return sorted(run.name for run in read_runs(client, active=True) if run.id != but and run.state_name != WAITING)

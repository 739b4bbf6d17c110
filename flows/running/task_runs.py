"""Open task runs of a flow run on the Prefect server: find and close them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterFlowRunId, TaskRunFilterState, TaskRunFilterStateType
from prefect.client.schemas.objects import TERMINAL_STATES, StateType
from prefect.states import Crashed

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import TaskRun


def open_task_runs(client: SyncPrefectClient, flow_run_id: UUID) -> list[TaskRun]:
    """Return the task runs without a terminal state."""
    unfinished = [state for state in StateType if state not in TERMINAL_STATES]
    states = TaskRunFilterState(type=TaskRunFilterStateType(any_=unfinished))
    return client.read_task_runs(task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[flow_run_id]), state=states))


def end_task_runs(client: SyncPrefectClient, flow_run_id: UUID, why: str) -> None:
    """Set the open task runs of an ended flow run to Crashed; Prefect itself ends only the flow run."""
    for task_run in open_task_runs(client, flow_run_id):
        client.set_task_run_state(task_run.id, Crashed(message=why), force=True)

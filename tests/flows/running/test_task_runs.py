"""Task runs that a flow run leaves open."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

from prefect.client.schemas.objects import StateType

from flows.running.task_runs import end_task_runs, open_task_runs

FLOW_RUN = uuid4()


class Client:
    """Keeps what it is asked for, and the states that are set."""

    def __init__(self) -> None:
        self.filters: list[Any] = []
        self.set: list[tuple[UUID, str, str, bool]] = []
        self.found = [SimpleNamespace(id=uuid4()), SimpleNamespace(id=uuid4())]

    def read_task_runs(self, *, task_run_filter: Any) -> list[Any]:
        self.filters.append(task_run_filter)
        return self.found

    def set_task_run_state(self, task_run_id: UUID, state: Any, *, force: bool) -> None:
        self.set.append((task_run_id, state.name, state.message, force))


def test_open_are_those_of_the_flow_run_without_a_final_state() -> None:
    client = Client()
    assert open_task_runs(client, FLOW_RUN) == client.found  # type: ignore[arg-type,comparison-overlap]
    [asked] = client.filters
    assert asked.flow_run_id.any_ == [FLOW_RUN]
    assert {StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED} <= set(asked.state.type.any_)
    assert set(asked.state.type.any_).isdisjoint({StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED})


def test_each_open_one_is_set_to_crashed_with_the_reason() -> None:
    client = Client()
    end_task_runs(client, FLOW_RUN, "its process is gone")  # type: ignore[arg-type]
    assert client.set == [(task_run.id, "Crashed", "its process is gone", True) for task_run in client.found]

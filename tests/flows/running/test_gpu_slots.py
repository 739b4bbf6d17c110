"""Runs take turns on the GPUs, on a real Prefect API."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings

from dora_core.errors import ServiceError
from flows.deployment import deploy
from flows.deployment.deploy import Deployment
from flows.running import gpu_slots as limits
from flows.running.observer import Observer
from flows.running.surroundings import Surroundings
from infra.settings import Settings
from tests.flows.prefect_server import PATIENCE, until

pytestmark = pytest.mark.component

HEAVY = SimpleNamespace(needs_ray=True, to_run=[])
LIGHT = SimpleNamespace(needs_ray=False, to_run=[])


class Run:
    """A flow run in a thread of its own that takes a slot, says so, and waits until it may end."""

    def __init__(self, name: str, plan: Any = HEAVY, error: BaseException | None = None):
        self.inside, self.may_end, self.plans = threading.Event(), threading.Event(), 0
        self.result: Any = None

        def build(*_: Any) -> Any:
            self.plans += 1
            return plan

        @flow(name="realign", flow_run_name=name)
        def run() -> None:
            with limits.gpu_slot(Surroundings.of_run(Observer()), build):
                self.inside.set()
                assert self.may_end.wait(PATIENCE)
                if error is not None:
                    raise error

        def start() -> None:
            with temporary_settings({PREFECT_API_URL: Settings().effective().prefect_api_url}):
                self.result = run(return_state=True)

        self.thread = threading.Thread(target=start, daemon=True)
        self.thread.start()

    def end(self) -> Any:
        """Its final state."""
        self.may_end.set()
        self.thread.join(PATIENCE)
        return self.result


def taken(client: SyncPrefectClient) -> int:
    return client.read_global_concurrency_limit_by_name(limits.LIMIT).active_slots


@pytest.mark.fault(16)
def test_a_second_run_waits_says_for_whom_and_plans_anew(api: str, client: SyncPrefectClient, entries: list[Deployment]) -> None:
    deploy.deploy(api, pool="people", limit=1)
    first = Run("first")
    assert first.inside.wait(PATIENCE) and taken(client) == 1
    light = Run("light", LIGHT)
    assert light.inside.wait(PATIENCE), "nothing heavy runs: no slot"
    assert light.end().is_completed()

    second = Run("second")
    waiting = until(lambda: next((run for run in limits.read_runs(client, active=True) if run.state_name == limits.WAITING), None))
    assert waiting.name == "second"
    assert waiting.state.message == "waits for 1 of dora-gpus: taken by first"
    assert not second.inside.is_set()

    assert first.end().is_completed()
    assert second.inside.wait(PATIENCE)
    assert (first.plans, second.plans, taken(client)) == (1, 2, 1)
    assert next(run.state_name for run in limits.read_runs(client, active=True) if run.name == "second") == "Running"
    second.end()
    assert taken(client) == 0


def test_a_run_that_fails_gives_its_slot_back(api: str, client: SyncPrefectClient, entries: list[Deployment]) -> None:
    deploy.deploy(api, pool="people", limit=1)
    run = Run("failing", error=RuntimeError("no"))
    assert run.inside.wait(PATIENCE) and taken(client) == 1
    assert run.end().is_failed() and taken(client) == 0


@pytest.mark.fault(17)
def test_without_the_limit_a_run_says_who_makes_it(api: str, client: SyncPrefectClient, entries: list[Deployment]) -> None:
    deploy.deploy(api, pool="people", limit=1)
    client.delete_global_concurrency_limit_by_name(limits.LIMIT)
    state = Run("lost").end()
    with pytest.raises(ServiceError, match="has no concurrency limit 'dora-gpus'") as error:
        state.result()
    assert "dora deploy" in error.value.hint
    assert deploy.deploy(api, pool="people").limit == (limits.LIMIT, 1, "created")

"""PostgreSQL is stopped under Prefect and MLflow in the middle of a run, and comes back on the same port."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import Recovery
from tests.guarantee import agreed, nothing_left, same_as_fault_free
from tests.machine import Machine
from tests.postgres_server import PostgresServer, postgres_server
from tests.system.interrupted_runs import measured, mlflow_history, stage, start_training

pytestmark = [pytest.mark.system, pytest.mark.chaos]

AWAY_SECONDS = 20.0


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("on-postgres") / "home")
    machine.environment["DORA_POSTGRES"] = postgres.url
    try:
        machine.urls = machine.dora("up")["services"]
        del machine.environment["DORA_POSTGRES"]  # from here on it is recorded
        yield machine
    finally:
        machine.dora("down")
    assert machine.processes() == []


@pytest.mark.fault(32)
def test_a_run_survives_a_restart_of_postgresql(machine: Machine, postgres: PostgresServer, recovery: Recovery, tmp_path: Path) -> None:
    run = start_training(machine, "postgres-away")
    postgres.stop()
    recovery.begins()
    time.sleep(AWAY_SECONDS)  # the fault itself: training ends within it
    postgres.start()
    machine.wait_for_state(run, {"COMPLETED"})
    recovery.ends()
    agreed(machine, run, "COMPLETED")
    nothing_left(machine)
    for label in ("sft", "align"):
        assert mlflow_history(machine, run, label, "loss") == measured(machine, run, label, "loss") != []
    assert stage(machine, run, "sft")["mlflow_run_id"]
    assert not list((machine.home / "spool").glob("*")), "nothing waits any more"
    same_as_fault_free(machine.store, machine.manifest(run), tmp_path)

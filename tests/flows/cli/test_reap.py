"""`dora reap`: nothing left over, and a killed run that is shown. Ending runs: ``tests/flows/upkeep/test_reap.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.run_record import read_record
from infra.settings import Settings
from infra.store.store import Store
from tests.flows.cli.invoked import assert_help, document, invoke
from tests.flows.killed_runs import process, write_manifest


@pytest.fixture
def killed(own_home: Path) -> Store:
    settings = Settings()
    write_manifest(settings, "p-1", process(False))
    return Store(settings.store_uri)


def status(store: Store) -> str:
    record = read_record(store, "p-1")
    assert record is not None
    return record.status


def test_help_has_an_example_and_the_options() -> None:
    assert_help("reap", "--dry-run", "--json")


def test_nothing_is_left_over(own_home: Path) -> None:
    assert invoke("reap").out.strip() == "nothing is left over"
    found = document("reap")
    assert found["runs"] == {} and found["problems"] == [] and found["slots"] == 0


def test_a_killed_run_is_shown_and_stays_as_it_is(killed: Store) -> None:
    assert document("reap", "--dry-run")["runs"].keys() == {"p-1"}
    assert status(killed) == "running"

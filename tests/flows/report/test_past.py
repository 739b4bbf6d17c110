"""Earlier runs of a project."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.report.past import evaluated, facts_in, last_run, projects, runs_of
from flows.run_record import RunRecord, read_record
from infra.store.store import Store
from tasks.stages import evaluate
from tests.flows.report.runs import make_run

FIRST, FAILED, SECOND, THIRD = (f"demo-202601{day}-120000-ab12" for day in (28, 29, 30, 31))
LONGER = "demo-x-20260201-120000-ab12"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    for run_id in (FIRST, SECOND, THIRD):
        make_run(store, ["human", "model"], run_id=run_id, flow="realign")
    make_run(store, ["human", "model"], run_id=FAILED, flow="realign", status="failed")
    make_run(store, ["human", "model"], run_id=LONGER, project="demo-x", flow="realign")
    return store


def run(store: Store, run_id: str) -> RunRecord:
    record = read_record(store, run_id)
    assert record is not None
    return record


def test_runs_are_those_of_the_project_newest_first(store: Store) -> None:
    assert projects(store) == ["demo-x", "demo"]
    assert [one.run_id for one in runs_of(store, "demo")] == [THIRD, SECOND, FAILED, FIRST]
    assert [one.run_id for one in runs_of(store, "demo", before=SECOND)] == [FAILED, FIRST]
    assert [one.run_id for one in runs_of(store, "demo-x")] == [LONGER]


def test_the_last_run_is_a_completed_one_of_the_same_flow(store: Store) -> None:
    last = last_run(store, run(store, SECOND))
    assert last is not None and last.run_id == FIRST
    assert last_run(store, run(store, FIRST)) is None
    make_run(store, ["human", "model"], run_id="demo-20260131-110000-ab12", flow="calibrate")
    last = last_run(store, run(store, THIRD))
    assert last is not None and last.run_id == SECOND


def test_a_trend_has_the_last_completed_evaluations_oldest_first(store: Store) -> None:
    without = ("compare", "evaluate", "promote")
    make_run(store, ["human", "model"], run_id="demo-20260201-120000-ab12", flow="realign", without=without)
    assert [one.run_id for one in evaluated(runs_of(store, "demo"))] == [FIRST, SECOND, THIRD]
    assert [one.run_id for one in evaluated(runs_of(store, "demo"), count=2)] == [SECOND, THIRD]


def test_cached_stages_have_their_facts(store: Store) -> None:
    record = run(store, THIRD)
    cached = record.evolve(stages=[entry.evolve(state="cached") for entry in record.stages])
    pending = record.evolve(stages=[entry.evolve(state="pending") for entry in record.stages])
    found = facts_in(store, cached, "evaluate", evaluate.Facts)
    assert found is not None and found == facts_in(store, record, "evaluate", evaluate.Facts)
    assert facts_in(store, pending, "evaluate", evaluate.Facts) is None is facts_in(store, None, "evaluate", evaluate.Facts)

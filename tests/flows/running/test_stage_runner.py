"""One stage brought into the store, with its journal followed and its end reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dora_core.errors import DataError
from flows.running.stage_runner import StageRunner
from infra.ray_jobs import RayJobs
from infra.store.store import Store
from tasks.runtime.stage import StageContext, StageOutput
from tests.flows.running.planned import Spec, plan_of, register


def no_jobs() -> RayJobs:
    raise AssertionError("the toy stage runs in this process")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def runner(store: Store) -> tuple[StageRunner, list[tuple[Any, ...]]]:
    """A runner, and the observer's calls."""
    calls: list[tuple[Any, ...]] = []

    def notify(callback: str, stage: Any, *facts: Any) -> None:
        calls.append((callback, stage.label, *(f["done"] if isinstance(f, dict) and "done" in f else f for f in facts)))

    return StageRunner(store, notify, no_jobs), calls


def count(spec: Spec, context: StageContext) -> StageOutput:
    context.progress(spec.number, 10, "rows")
    return StageOutput(rows=spec.number)


def test_events_reach_the_caller_before_the_observer_and_the_result_is_returned(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, count)
    [stage] = plan_of(7).stages
    run, calls = runner(store)
    seen: list[int] = []
    with run.observed(stage):
        result = run.compute(stage, on_part=lambda part: seen.extend(len(calls) for _ in part.events))
    assert result["rows"] == 7 and stage.spec.is_done(store)
    assert seen == [0], "one event, before any call of the observer"
    assert [call[:3] for call in calls] == [("event", "toy 7", 7), ("finished", "toy 7", "ran")] and calls[1][3]["rows"] == 7


@pytest.mark.parametrize(("error", "state"), [(DataError("no"), "failed"), (KeyboardInterrupt(), "cancelled")])
def test_a_stage_that_does_not_end_well_is_reported_and_raises(
    error: BaseException, state: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(spec: Spec, context: StageContext) -> StageOutput:
        context.progress(1, 10, "rows")
        raise error

    register(monkeypatch, fail)
    [stage] = plan_of(1).stages
    run, calls = runner(store)
    with pytest.raises(type(error)), run.observed(stage):
        run.compute(stage)
    why = ("no",) if state == "failed" else ()
    assert calls == [("event", "toy 1", 1), ("finished", "toy 1", state, None, *why)]


def test_the_journal_of_an_earlier_attempt_is_replayed_unless_it_is_skipped(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(spec: Spec, context: StageContext) -> StageOutput:
        context.progress(3, 10, "rows")
        raise DataError("no")

    [stage] = plan_of(5).stages
    for skip_earlier, expected in ((False, [3, 5]), (True, [5])):
        fresh = Store(f"{store.uri}-{skip_earlier}")
        run, calls = runner(fresh)
        register(monkeypatch, fail)
        with pytest.raises(DataError):
            run.compute(stage)
        calls.clear()
        register(monkeypatch, count)
        run.compute(stage, skip_earlier=skip_earlier)
        assert [call[2] for call in calls] == expected


def test_the_spec_that_is_executed_may_carry_more_than_the_planned_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[Spec] = []
    register(monkeypatch, lambda spec, context: executed.append(spec) or count(spec, context))
    [stage] = plan_of(2).stages
    other = stage.spec.evolve(execution={"workers": 0})
    run, _ = runner(store)
    run.compute(stage, spec=other)
    assert executed == [other] and run.result(stage)["digest"] == stage.digest

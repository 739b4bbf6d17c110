"""The task of a stage, without Prefect's engine: cached, computed, done by another run, failed; and what is tried again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger
from prefect.states import Failed

from dora_core.errors import DataError, ServiceError
from flows.planning.planned_stage import PlannedStage
from flows.running.session import Session
from flows.running.stage_task import StageOutcome, is_transient, run_stage
from flows.running.states import CACHED
from infra.store.store import Store
from infra.tracking.mlflow_client import mlflow_client
from tasks.runtime.stage import StageContext, StageOutput, execute
from tests.flows.running.planned import Spec, plan_of, register
from tests.flows.running.sessions import Watching, opened


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_sqlite: str) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DORA_MLFLOW_URI", mlflow_sqlite)
    for name in ("PREFECT_API_URL", "DORA_PREFECT_API_URL", "DORA_STORE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    register(monkeypatch, compute)


def compute(spec: Spec, context: StageContext) -> StageOutput:
    return StageOutput(rows=spec.number, metrics={"score": 0.5})


def run(session: Session, stage: PlannedStage) -> Any:
    with disable_run_logger():
        return run_stage.fn(stage, [], session)


def outcome(session: Session, stage: PlannedStage, seconds: float) -> StageOutcome:
    return StageOutcome(stage.label, stage.digest, f"{session.store.uri}/toy/{stage.digest}", seconds)


def test_a_stage_is_computed_tracked_and_recorded(mlflow_sqlite: str) -> None:
    watching, plan = Watching(), plan_of(3)
    (stage,) = plan.stages
    with opened(plan, watching) as session:
        state = run(session, stage)
        recorded = session.manifest.run.stage("toy 3")
        assert recorded.state == "ran" and recorded.seconds == state.data.seconds > 0
    assert state.is_completed() and state.message == "runs: first time"
    assert state.data == outcome(session, stage, state.data.seconds) and stage.spec.is_done(session.store)
    assert watching.calls[1:] == [("started", "toy 3"), ("finished", "toy 3", "ran")]
    tracked = mlflow_client(mlflow_sqlite).get_run(session.manifest.run.stage("toy 3").mlflow_run_id or "")
    assert tracked.info.status == "FINISHED" and tracked.data.metrics["score"] == 0.5 and tracked.data.tags["dora.stage"] == "toy"


def test_a_cached_stage_is_not_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    execute(Spec(number=2), compute, Store(str(tmp_path / "home" / "store")))
    plan = plan_of(2)
    (stage,) = (replace(stage, cached=True, reason="cached: as before") for stage in plan.stages)
    register(monkeypatch, lambda spec, context: pytest.fail("it was computed"))
    with opened(replace(plan, stages=(stage,))) as session:
        state = run(session, stage)
        assert (state.name, state.message, state.data) == (CACHED, "cached: as before", outcome(session, stage, 0.0))
        assert session.manifest.run.stage("toy 2").state == "cached" and session.tracked == {}


def test_a_stage_that_another_run_has_computed_meanwhile_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(2)
    (stage,) = plan.stages
    with opened(plan) as session:
        execute(stage.spec, compute, session.store)
        register(monkeypatch, lambda spec, context: pytest.fail("it was computed"))
        state = run(session, stage)
    assert state.name == CACHED and state.message == "cached: another run has just computed it"


def test_a_failed_stage_is_recorded_with_its_error(monkeypatch: pytest.MonkeyPatch, mlflow_sqlite: str) -> None:
    def fail(spec: Spec, context: StageContext) -> StageOutput:
        raise DataError("row is bad", hint="drop it")

    register(monkeypatch, fail)
    watching, plan = Watching(), plan_of(1)
    with pytest.raises(DataError, match="row is bad"), opened(plan, watching) as session:
        run(session, plan.stages[0])
    recorded = session.manifest.run.stage("toy 1")
    assert recorded.state == "failed" and watching.calls[-1] == ("finished", "toy 1", "failed", "row is bad")
    tracked = mlflow_client(mlflow_sqlite).get_run(recorded.mlflow_run_id or "")
    assert tracked.info.status == "FAILED" and "row is bad" in tracked.data.tags["dora.error"]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ServiceError("away", retryable=True), True),
        (ServiceError("refused", retryable=False), False),
        (DataError("row is bad"), False),
        (ValueError("a bug"), False),
    ],
)
def test_only_an_error_that_says_so_is_tried_again(error: Exception, again: bool) -> None:
    assert is_transient(None, None, Failed(data=error)) is again

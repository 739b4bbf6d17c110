"""MLflow runs of self-training rounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dora_core.evaluation.metrics import Interval
from flows.running.round_runs import RoundRuns
from infra.store.json_files import StoredResult
from tasks.runtime.descriptor import Stage, StageResult
from tasks.stages.registry import STAGES
from tests.flows.running.planned import Spec, plan_of


class Tracker:
    """Keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start_run(self, name: str, *, parent: str, tags: dict[str, str]) -> str:
        self.calls.append(("start", name, parent, tags["dora.round"]))
        return f"run of {name}"

    def log_metrics(self, run: str, values: dict[str, float], step: int = 0) -> None:
        self.calls.append(("log", run, values, step))

    def finish(self, run: str, status: str) -> None:
        self.calls.append(("finish", run, status))


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Tracker:
    def intervals(result: StageResult[Any]) -> dict[str, Interval]:
        return {
            name: Interval(value=result.metrics[name], low=0.5, high=0.7, n=9) for name in ("win_rate", "rows") if name in result.metrics
        }

    toy = Stage(Spec, lambda spec, context: None, tracked=("win_",), intervals=intervals)  # type: ignore[arg-type,return-value]
    monkeypatch.setitem(STAGES, "toy", toy)
    return Tracker()


def result(**metrics: float) -> StoredResult:
    return {"stage": "toy", "digest": "d", "spec": {}, "inputs": {}, "rows": 1, "metrics": metrics, "facts": {}, "seconds": 1.0}  # type: ignore[typeddict-item]


def test_outside_self_training_metrics_go_to_the_parent(tracker: Tracker) -> None:
    rounds = RoundRuns(tracker, "parent", "p-1")  # type: ignore[arg-type]
    [stage] = plan_of(1).stages
    assert rounds.parent_of(stage) == "parent"
    rounds.log(stage, result(win_rate=0.6, rows=3.0))
    rounds.finish("FINISHED")
    assert tracker.calls == [("log", "parent", {"win_rate": 0.6, "win_rate_low": 0.5, "win_rate_high": 0.7}, 0)]


def test_a_round_has_a_run_of_its_own_and_a_point_on_the_parents_curve(tracker: Tracker) -> None:
    rounds = RoundRuns(tracker, "parent", "p-1")  # type: ignore[arg-type]
    first, second = (replace(stage, round=number) for number, stage in enumerate(plan_of(1, 2).stages, start=1))
    rounds.log(first, result(win_rate=0.6))
    assert rounds.parent_of(first) == "run of round 1" and rounds.parent_of(second) == "run of round 2"
    rounds.finish("FAILED")
    assert tracker.calls == [
        ("start", "round 1", "parent", "1"),
        ("log", "run of round 1", {"win_rate": 0.6, "win_rate_low": 0.5, "win_rate_high": 0.7}, 0),
        ("log", "parent", {"round/win_rate": 0.6, "round/win_rate_low": 0.5, "round/win_rate_high": 0.7}, 1),
        ("start", "round 2", "parent", "2"),
        ("finish", "run of round 1", "FINISHED"),
        ("finish", "run of round 2", "FAILED"),
    ]

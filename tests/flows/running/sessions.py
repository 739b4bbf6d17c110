"""Sessions of toy plans, without servers: the tracker writes into an MLflow database of the test."""

from __future__ import annotations

from typing import Any

from flows.config.models import RealignConfig
from flows.planning.planned_stage import Plan
from flows.running.manifest import FlowRun
from flows.running.observer import Observer
from flows.running.session import Session
from flows.running.surroundings import Surroundings

FLOW_RUN = FlowRun("realign", "0007c4d3-a244-49a0-84d7-d13a2280d659", "p · data")


class Watching(Observer):
    """An observer that keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def planned(self, run_id: str, plan: Plan) -> None:
        self.calls.append(("planned", run_id))

    def started(self, stage: Any) -> None:
        self.calls.append(("started", stage.label))

    def finished(self, stage: Any, state: str, result: dict[str, Any] | None, why: str = "") -> None:
        self.calls.append(("finished", stage.label, state, why) if why else ("finished", stage.label, state))


def opened(plan: Plan, observer: Observer | None = None) -> Session:
    config = RealignConfig.model_validate({"project": "p", "data": {"train": [{"path": "x"}]}})
    return Session.open(config, plan, FLOW_RUN, Surroundings.of_run(observer or Watching()))

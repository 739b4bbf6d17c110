"""A plan of one toy stage that is computed in this process."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest

from flows.planning.planned_stage import Plan, PlannedStage
from tasks.runtime.descriptor import Stage
from tasks.runtime.stage import StageContext, StageOutput, StageSpec
from tasks.stages.registry import STAGES


class Spec(StageSpec):
    stage: ClassVar[str] = "toy"
    placement: ClassVar[Literal["job", "local"]] = "local"

    number: int = 1


def plan_of(*numbers: int) -> Plan:
    stages = (PlannedStage(f"toy {n}", Spec(number=n), False, "runs: first time", None) for n in numbers)
    return Plan("p", tuple(stages), {})


def register(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """Make ``toy`` a stage that computes with ``run``."""

    def compute(spec: Spec, context: StageContext) -> StageOutput:
        return run(spec, context)

    monkeypatch.setitem(STAGES, "toy", Stage(Spec, compute))

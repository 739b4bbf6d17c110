"""What a plan says about its stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.planning.planned_stage import Plan
from tests.flows.running.test_shared_job import CONFIG, JOBS, SHORT, plan_of


def neighbours(plan: Plan) -> dict[str, list[str]]:
    return {s.label: [n.label for n in plan.neighbours(s)] for s in plan.to_run if s.is_small}


@pytest.fixture
def config(mixture: Path) -> Callable[[int], str]:
    return lambda epochs: CONFIG.format(data=mixture, epochs=epochs)


def test_neighbours_are_small_stages_without_another_between_them(tmp_path: Path, config: Callable[[int], str]) -> None:
    assert neighbours(plan_of(tmp_path, config(SHORT))) == dict.fromkeys(JOBS, JOBS)
    wide = plan_of(tmp_path, config(SHORT), "execution.align={workers: 2}")
    alone = {label: [label] for label in ("training_data (erm twin)", "evaluate")}
    assert neighbours(wide) == dict.fromkeys(JOBS[:5], JOBS[:5]) | alone
    on_gpu = plan_of(tmp_path, config(SHORT), "execution.sft={workers: 0, gpus_per_worker: 1}")
    assert neighbours(on_gpu) == dict.fromkeys(JOBS[:2], JOBS[:2]) | dict.fromkeys(JOBS[3:], JOBS[3:])

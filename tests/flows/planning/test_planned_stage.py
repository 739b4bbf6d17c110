"""What a plan says about its stages."""

from __future__ import annotations

from pathlib import Path

from flows.planning.planned_stage import Plan
from tests.flows.small_realign import JOBS, plan_of, small_realign


def neighbours(plan: Plan) -> dict[str, list[str]]:
    return {s.label: [n.label for n in plan.neighbours(s)] for s in plan.to_run if s.is_small}


def test_neighbours_are_small_stages_without_another_between_them(tmp_path: Path, mixture: Path) -> None:
    config = small_realign(mixture)
    assert neighbours(plan_of(tmp_path, config)) == dict.fromkeys(JOBS, JOBS)
    wide = plan_of(tmp_path, config, "execution.align={workers: 2}")
    alone = {label: [label] for label in ("training_data (erm twin)", "evaluate")}
    assert neighbours(wide) == dict.fromkeys(JOBS[:5], JOBS[:5]) | alone
    on_gpu = plan_of(tmp_path, config, "execution.sft={workers: 0, gpus_per_worker: 1}")
    assert neighbours(on_gpu) == dict.fromkeys(JOBS[:2], JOBS[:2]) | dict.fromkeys(JOBS[3:], JOBS[3:])

"""Cost of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flows.report.cost import Hours, cost_of
from flows.run_record import RunRecord
from infra.store.store import Store
from tests.flows.report.runs import make_facts, result_of


def test_hours_are_those_of_the_reserved_cpus_and_gpus(tmp_path: Path) -> None:
    """align: 1800 s on 4 workers of 2 CPUs and .5 GPU = 4 CPU h, 1 GPU h. compare has no execution: 360 s of one CPU = .1 h. sft is cached:
    3600 s in its own process (workers 0) of 1 CPU = 1 h, counted in ``whole`` alone. Its twin is the same stage, and counts once."""
    store, facts = Store(str(tmp_path)), make_facts(["human", "model"])
    seconds = {"align": 1800.0, "compare": 360.0, "sft": 3600.0}
    digests = {name: letter * 64 for name, letter in zip(seconds, "abc", strict=True)}
    results = {name: replace(result_of(name, facts[name]), digest=digests[name], seconds=seconds[name]) for name in seconds}
    results["align"] = replace(results["align"], memory=3_000_000_000)
    results["sft"] = replace(results["sft"], memory=1_000_000_000)
    results["sft again"] = results["sft"]
    executions = {"align": {"workers": 4, "cpus_per_worker": 2.0, "gpus_per_worker": 0.5}, "compare": None, "sft": {"workers": 0}}
    for name, execution in executions.items():
        store.write_json(f"{name}/{digests[name]}/spec.json", {"execution": execution} if execution is not None else {})
    states = {"align": "ran", "compare": "ran", "sft": "cached", "sft again": "cached"}
    stages = [{"stage": label.split()[0], "label": label, "digest": "", "state": state} for label, state in states.items()]
    run = RunRecord.model_validate(
        {"run_id": "demo-1", "project": "demo", "started": 100.0, "finished": 160.0, "status": "completed", "stages": stages}
    )

    cost = cost_of(store, run, results)
    assert (cost.now.cpu, cost.now.gpu) == pytest.approx((4.1, 1.0))
    assert (cost.whole.cpu, cost.whole.gpu) == pytest.approx((5.1, 1.0))
    assert (cost.wall_seconds, cost.memory) == (60.0, 3_000_000_000)
    nothing = cost_of(store, run.evolve(finished=None), {})
    assert (nothing.now, nothing.wall_seconds, nothing.memory) == (Hours(), None, None)

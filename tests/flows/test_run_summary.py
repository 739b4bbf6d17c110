"""The outcome of a run in one sentence."""

from __future__ import annotations

from pathlib import Path

from flows.run_record import RunRecord, StageRecord
from flows.run_summary import evaluation_summary
from infra.store.store import Store
from tests.tasks.facts import evaluation


def test_the_last_evaluation_and_the_decision(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    stages = []
    for letter, gain in (("a", "better by one"), ("b", "better by two")):
        digest, empty = letter * 64, {"spec": {}, "inputs": {}, "rows": 1, "metrics": {}, "seconds": 1.0}
        facts = evaluation() | {"summary": gain}
        store.mark_done(store.folder("evaluate", digest), {"stage": "evaluate", "digest": digest, "facts": facts} | empty)
        stages.append(StageRecord(label=f"evaluate {letter}", stage="evaluate", digest=digest, state="ran"))
    running = StageRecord(label="evaluate 2", stage="evaluate", digest="0" * 64, state="running")
    run = RunRecord(run_id="r", project="p", name="n", status="completed", started=0.0, stages=[*stages, running], decision="undecided")
    assert evaluation_summary(store, run) == "better by two"
    assert evaluation_summary(store, run.evolve(stages=[running])) == ""

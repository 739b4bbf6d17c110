"""The outcome of a run in one sentence, for a terminal, MLflow's description and Prefect's pages."""

from __future__ import annotations

from flows.run_record import RunRecord
from infra.store.store import Store
from tasks.runtime.descriptor import read_result
from tasks.runtime.spec import StageRef
from tasks.stages import evaluate


def evaluation_summary(store: Store, run: RunRecord) -> str:
    """Return the summary of the run's last finished evaluation (``tasks/stages/_twin_measures.py``); empty without one."""
    done = [stage for stage in run.stages if stage.stage == evaluate.STAGE.name and stage.is_finished]
    result = read_result(store, StageRef(stage=done[-1].stage, digest=done[-1].digest), evaluate.Facts) if done else None
    return result.facts.summary if result else ""

"""The flow ``tune``: a search over settings of alignment by short trials.

    ingest → … → reference → training_data → tune (trials on Ray Tune)

The stages that trials read are those of ``realign``, by the same digests. The flow runs, stops and resumes as ``realign`` does, with the
same parts (``flows/running/supervise.py``, ``flows/running/session.py``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run as this_run
from prefect.states import Completed

from flows.config.models import RealignConfig
from flows.config.run_names import name_of_realignment
from flows.config.search_space import SearchConfig
from flows.planning.planned_stage import Plan
from flows.planning.tune_plan import plan_search
from flows.run_record import EndedRun
from flows.running.gpu_slots import gpu_slot
from flows.running.manifest import FlowRun
from flows.running.naming import naming
from flows.running.session import Session
from flows.running.supervise import ProgressArtifacts, clean_up_dead_run, ended, outcome, publish_summary, recorded, run_plan
from flows.running.surroundings import Surroundings
from infra.store.journal import JournalReader
from tasks.runtime.descriptor import read_result
from tasks.runtime.spec import StageRef
from tasks.stages import trial
from tasks.stages import tune as stage


def describe_search() -> str:
    """Return ``"demo · 2026-11-30 · mixture.parquet · dpo · dora λ=auto · tune"``."""
    return naming(name_of_search)(this_run.parameters["config"])


def name_of_search(config: RealignConfig) -> str:
    return f"{name_of_realignment(config)} · tune"


@flow(name="tune", flow_run_name=describe_search, persist_result=False, on_cancellation=[clean_up_dead_run], on_crashed=[clean_up_dead_run])
def tune(config: RealignConfig, search: SearchConfig) -> State[EndedRun]:
    """Search settings of alignment by short trials.

    Args:
        config: the whole configuration, which the trials vary.
        search: what they vary, and the budget.
    """
    here = Surroundings.of_run(ProgressArtifacts())

    def plan() -> Plan:
        return plan_search(config, search, here.store)[0]

    flow_run = FlowRun("tune", this_run.id, this_run.name)
    with recorded(), gpu_slot(here, plan) as made, Session.open(config, made, flow_run, here) as session:
        run_plan(session)
        track_trials(session)
        track_page(session)
    publish_summary(session)
    return Completed(message=outcome(session.store, session.manifest.run), data=ended(session))


def track_trials(session: Session) -> None:
    """Track one MLflow run per trial, nested below the search's, with its curves and measurements; only when the search is new."""
    entry = session.manifest.run.stages[-1]
    if entry.state != "ran":
        return
    result = read_result(session.store, StageRef(stage=entry.stage, digest=entry.digest), stage.Facts)
    assert result is not None, "the search has run"
    for one in result.facts.trials:
        tags = {"dora.run_id": session.manifest.run_id, "dora.digest": one.digest, "dora.state": one.state, "dora.reason": one.reason}
        tags = {name: text for name, text in tags.items() if text}
        run = session.tracker.start_run(one.name, parent=session.parent_run, tags=tags, params=one.values)
        for part in JournalReader(session.store, trial.Spec.stage, one.digest).new_parts(ended=True):
            session.tracker.replay(run, part)
        session.tracker.finish(run, "FAILED" if one.state == "failed" else "FINISHED")


def track_page(session: Session) -> None:
    """Log the page as an artifact of the search's own MLflow run; a run without work has none."""
    from flows.report.tune import render_tune

    if session.parent_run is None:
        return
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "tune.html"
        page.write_text(render_tune(session.store, session.manifest.run_id), encoding="utf-8")
        session.tracker.log_files(session.parent_run, {"tune.html": page})

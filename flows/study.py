"""The flow ``study``: the paper's comparisons on the known mixture, as tables with intervals.

    seed 0 → seed 1 → … → tables

Each seed is one ``batch`` of all the stages of its cells (``flows/planning/study_grid.py``); the tables are read from their outputs. The
flow runs, stops and resumes as ``realign`` does, with the same parts (``flows/running/supervise.py``, ``flows/running/session.py``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run as this_run
from prefect.states import Completed

from flows.config.models import StudyConfig
from flows.planning.study_grid import Grid, build_grid, cells, plan_study
from flows.run_record import EndedRun
from flows.running.gpu_slots import gpu_slot
from flows.running.manifest import FlowRun
from flows.running.naming import naming
from flows.running.session import Session
from flows.running.supervise import ProgressArtifacts, clean_up_dead_run, ended, outcome, publish_summary, recorded, run_plan
from flows.running.surroundings import Surroundings
from tasks.runtime.descriptor import read_result
from tasks.runtime.spec import StageRef
from tasks.runtime.stage import write_spec
from tasks.stages import study as tables


def name_of_study(config: StudyConfig) -> str:
    """Return ``"study · 62 cells · 5 seeds"``."""
    return f"{config.project} · {len(cells(config))} cells · {len(config.seeds)} seeds"


def describe_study() -> str:
    return naming(name_of_study)(this_run.parameters["config"])


@flow(name="study", flow_run_name=describe_study, persist_result=False, on_cancellation=[clean_up_dead_run], on_crashed=[clean_up_dead_run])
def study(config: StudyConfig) -> State[EndedRun]:
    """Compare losses and robust objectives on generated data whose true densities and rewards are known.

    Args:
        config: the grid, and the settings that its realignments share.
    """
    return supervise_study(config)


def supervise_study(config: StudyConfig) -> State[EndedRun]:
    """Body of the flow: plan, run every seed, write the tables."""
    here = Surroundings.of_run(ProgressArtifacts())
    grid = build_grid(config, here.settings.root / "study")
    flow_run = FlowRun("study", this_run.id, this_run.name, command=here.command)
    slot = gpu_slot(here, lambda: plan_study(config, grid, here.store))
    with recorded(), slot as plan, Session.open(config, plan, flow_run, here) as session:
        write_specs(session, grid)
        run_plan(session)
        track_cells(session)
        track_page(session)
    publish_summary(session)
    return Completed(message=outcome(session.store, session.manifest.run), data=ended(session))


def write_specs(session: Session, grid: Grid) -> None:
    """Store the specs of all stages, for the batches, and for `dora gc`, which finds the inputs of later batches in them."""
    for stage in session.plan.to_run:
        if not stage.is_local:
            write_spec(stage.spec, session.store)
    for specs in grid.stages.values():
        for spec in specs:
            if not spec.is_done(session.store):
                write_spec(spec, session.store)


def track_cells(session: Session) -> None:
    """Track one MLflow run per cell, so that its runs table sorts and plots the grid; only when the tables are new."""
    entry = session.manifest.run.stages[-1]
    if entry.state != "ran":
        return
    result = read_result(session.store, StageRef(stage=entry.stage, digest=entry.digest), tables.Facts)
    assert result is not None, "the tables have run"
    for key, cell in result.facts.cells.items():
        tags = {"dora.run_id": session.manifest.run_id, "dora.cell": key, "dora.digest": entry.digest}
        run = session.tracker.start_run(cell.method, parent=session.parent_run, tags=tags, params=cell.params.model_dump(mode="json"))
        session.tracker.log_metrics(run, cell.metrics)
        session.tracker.finish(run, "FINISHED")


def track_page(session: Session) -> None:
    """Log the page and the tables as artifacts of the study's own MLflow run, if it has one: they are new."""
    if session.parent_run is None:
        return
    from flows.report.study import render_study

    entry = session.manifest.run.stages[-1]
    folder = session.store.fetch(entry.stage, entry.digest)
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "study.html"
        page.write_text(render_study(session.store, session.manifest.run_id), encoding="utf-8")
        files = {f"tables/{path.name}": path for path in sorted((folder / "tables").glob("*.parquet"))}
        session.tracker.log_files(session.parent_run, {"study.html": page} | files)

"""The one Prefect task that runs any stage: in this process, as a Ray job of its own, in one it shares with other small stages
(``flows/running/shared_job.py``), or not at all if its result is there.

The task's state carries the reason ("Cached: same inputs and settings as …"), its run name the stage, and it returns a few
strings, never data. Prefect's own caching and result storage are off: the artifact store is the cache, and it checks that
the output still exists. Faults of the control plane and jobs that were killed from outside are retried, twice; each attempt goes on
from what the one before has finished. Bad data does not heal by itself.

One run computes a stage; another that wants the same waits for it (``infra/store/locks.py``), and finds it cached.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from dora_core.errors import DoraError
from flows.planning.plan import PlannedStage
from flows.report.figures import figures_for
from flows.running.jobs import run_as_job
from flows.running.session import Session
from flows.running.shared_job import SharedJob
from infra.store.journal import JournalPart, JournalReader
from tasks.runtime.stage import execute
from tasks.stages import ingest, promote
from tasks.stages.registry import STAGES


@dataclass(frozen=True)
class StageOutcome:
    """What later tasks and the flow learn about a finished stage."""

    label: str
    digest: str
    uri: str
    seconds: float


def is_transient(task: Any, task_run: Any, state: State) -> bool:
    """Prefect's ``retry_condition_fn``: another attempt only where the error itself says it may help."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, DoraError) and error.retryable


@task(persist_result=False, cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[2, 10], retry_condition_fn=is_transient)
def run_stage(stage: PlannedStage, upstream: list[StageOutcome], session: Session) -> State[StageOutcome]:
    """Bring one stage's result into the store.

    Args:
        upstream: outcomes of the stages it reads; they draw the edges of the graph in Prefect's UI.

    Raises:
        StageFailed: with the stage's own error. ServiceError: Ray or the registry is away (retried).
    """
    uri = f"{session.store.uri}/{stage.stage}/{stage.digest}"
    if stage.cached:
        return _cached(session, stage, uri, stage.reason)
    shared = session.shared_job(stage)
    session.notify("started", stage)
    with ExitStack() as held:
        tell = partial(_tell, session)
        is_done = shared.prepare(stage, tell) if shared else held.enter_context(session.owning(stage, tell))
        if is_done and session.manifest.is_pending(stage.label):  # not by an earlier attempt of this task
            return _cached(session, stage, uri, "cached: another run has just computed it")
        return _run(session, stage, uri, shared)


def _cached(session: Session, stage: PlannedStage, uri: str, reason: str) -> State[StageOutcome]:
    result = _result(session, stage)
    session.manifest.finish(stage.label, result, state="cached", seconds=0.0)
    session.rounds.log(stage, result)
    session.notify("finished", stage, "cached", result)
    return Completed(name="Cached", message=reason, data=StageOutcome(stage.label, stage.digest, uri, 0.0))


def _run(session: Session, stage: PlannedStage, uri: str, shared: SharedJob | None) -> State[StageOutcome]:
    started = time.monotonic()
    with _tracked(session, stage) as run:
        _log_inputs(session, stage, run)
        with _followed(session, stage, run):
            if stage.is_local:
                _run_here(session, stage, run)
            else:
                _run_job(session, stage, shared)
        result = _result(session, stage)
        session.tracker.log_result(run, result, figures_for(stage.stage, result))
        session.tracker.log_input(run, stage.label, uri, stage.digest, "output")
    # In a shared job a stage may have run while an earlier task was waited for.
    seconds = result["seconds"] if shared else time.monotonic() - started
    session.manifest.finish(stage.label, result, state="ran", seconds=seconds)
    session.rounds.log(stage, result)
    session.notify("finished", stage, "ran", result)
    return Completed(message=stage.reason, data=StageOutcome(stage.label, stage.digest, uri, seconds))


def _tell(session: Session, why: str) -> None:
    get_run_logger().info(why)
    session.notify("waiting", why)


def _result(session: Session, stage: PlannedStage) -> dict[str, Any]:
    result = session.store.read_result(stage.stage, stage.digest)
    assert result is not None, f"{stage.label} is done but has no result"
    return result


def _run_here(session: Session, stage: PlannedStage, run: str) -> None:
    spec = stage.spec
    if isinstance(spec, promote.Spec):
        tracking = promote.Tracking(uri=session.tracker.uri, run_id=session.tracker.mlflow_id(run, wait_seconds=30.0))
        spec = spec.model_copy(update={"tracking": tracking})
    execute(spec, STAGES[stage.stage].run, session.store)


def _run_job(session: Session, stage: PlannedStage, shared: SharedJob | None) -> None:
    logger = get_run_logger()

    def on_log(line: str) -> None:
        logger.info(line)
        session.notify("log", stage, line)

    def on_submitted(submission_id: str) -> None:
        session.manifest.stage(stage.label, submission_id=submission_id)

    if shared is not None:
        shared.run(stage, on_log=on_log, on_submitted=on_submitted)
        return
    run_as_job(session.ray.jobs(), stage.spec, session.store, on_log=on_log, on_submitted=on_submitted)


@contextmanager
def _tracked(session: Session, stage: PlannedStage) -> Iterator[str]:
    """A nested MLflow run that ends with the truth: FINISHED, FAILED, or KILLED for an interrupt."""
    inputs = {name.partition(".")[0] for name in stage.spec.inputs()}
    payload = {name: value for name, value in stage.spec.payload().items() if name not in inputs}
    tags = {"dora.stage": stage.stage, "dora.digest": stage.digest, "dora.reason": stage.reason, "dora.run_id": session.manifest.run_id}
    run = session.tracker.start_run(stage.label, parent=session.rounds.parent_of(stage), tags=tags, params=payload)
    session.tracked[stage.label] = run
    session.manifest.stage(stage.label, state="running")
    try:
        yield run
    except BaseException as error:
        state = "failed" if isinstance(error, Exception) else "cancelled"
        session.manifest.stage(stage.label, state="failed", mlflow_run_id=session.tracker.mlflow_id(run))
        session.notify("finished", stage, state, None)
        session.tracker.finish(run, "FAILED" if state == "failed" else "KILLED", _ending(session, stage) | {"dora.error": str(error)})
        raise
    session.manifest.stage(stage.label, mlflow_run_id=session.tracker.mlflow_id(run))
    session.tracker.finish(run, "FINISHED", _ending(session, stage))


def _ending(session: Session, stage: PlannedStage) -> dict[str, str]:
    entry = next(s for s in session.manifest.content["stages"] if s["label"] == stage.label)
    submission = entry["submission_id"]
    return {"ray.submission_id": submission, "dora.attempt": submission.rsplit("-", 1)[1]} if submission else {}


def _log_inputs(session: Session, stage: PlannedStage, run: str) -> None:
    """Dataset lineage: the input files for ingest, the stages it reads for any other."""
    if isinstance(stage.spec, ingest.Spec):
        for uri, digest in stage.spec.fingerprints.items():
            session.tracker.log_input(run, PurePosixPath(uri).name, uri, digest, "input")
    for name, ref in stage.spec.inputs().items():
        session.tracker.log_input(run, ref.stage, f"{session.store.uri}/{ref.stage}/{ref.digest}", ref.digest, name)


@contextmanager
def _followed(session: Session, stage: PlannedStage, run: str) -> Iterator[None]:
    """Replays the stage's journal into MLflow and to the observer while it runs, and the rest of it at the end.

    Parts of an earlier attempt are replayed too: the MLflow run of a resumed training then shows the whole curve.
    """

    def replay(part: JournalPart) -> None:
        session.tracker.replay(run, part)
        for event in part.events:
            session.notify("event", stage, event)

    with JournalReader(session.store, stage.stage, stage.digest).following(replay):
        yield

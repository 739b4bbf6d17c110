"""The Prefect task that runs any stage, and its MLflow run: in this process, as a Ray job, in a job shared with other small
stages (``flows/running/shared_job.py``), or not at all if its result is in the store. The work itself: ``flows/running/stage_runner.py``.

The task's state carries the reason ("Cached: same inputs and settings as …"), its run name the stage, and it returns a few
strings, never data. Prefect's own caching and result storage are off: the artifact store is the cache, and it checks that
the output still exists. Transient failures of the control plane and jobs that were killed from outside are retried, twice; each attempt
resumes from finished parts. Errors in data are not retried.

One run at a time computes a stage; others wait for it (``infra/store/locks.py``), and then find it cached.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from dora_core.errors import DoraError
from flows.planning.planned_stage import PlannedStage
from flows.report.figures import figures_for
from flows.running.run_page import log_files
from flows.running.session import Session
from flows.running.shared_job import SharedJob
from flows.running.stage_runner import StageRunner
from flows.running.states import CACHED
from infra.store.journal import JournalPart
from infra.tracking.outbox import Status
from tasks.runtime.spec import StageSpec
from tasks.stages import ingest, promote
from tasks.stages.registry import parse_result


class StageOutcome:
    """Result of a stage's task, for later tasks and the flow.

    A plain class: Prefect draws an edge for every object that a task returns, the fields of a dataclass included, and the digest of a stage
    is in the spec of every stage that reads it.
    """

    def __init__(self, label: str, digest: str, uri: str, seconds: float):
        self.label, self.digest, self.uri, self.seconds = label, digest, uri, seconds

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StageOutcome) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.label, self.digest))


def is_transient(task: Any, task_run: Any, state: State) -> bool:
    """Prefect's ``retry_condition_fn``: retry where the error itself is marked as retryable."""
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
    if stage.cached:
        return _cached(session, stage, stage.reason)
    shared = session.shared_job(stage)
    session.notify("started", stage)
    with ExitStack() as held:
        on_wait = partial(_waits, session)
        is_done = shared.prepare(stage, on_wait) if shared else held.enter_context(session.owning(stage, on_wait))
        if is_done and session.manifest.run.stage(stage.label).state == "pending":  # not by an earlier attempt of this task
            return _cached(session, stage, "cached: another run has just computed it")
        return _run(session, stage, shared)


def _cached(session: Session, stage: PlannedStage, reason: str) -> State[StageOutcome]:
    result = _runner(session).result(stage)
    session.manifest.finish(stage.label, result, state="cached", seconds=0.0)
    session.log_stage(stage, result)
    session.notify("finished", stage, "cached", result)
    return Completed(name=CACHED, message=reason, data=StageOutcome(stage.label, stage.digest, _uri(session, stage), 0.0))


def _run(session: Session, stage: PlannedStage, shared: SharedJob | None) -> State[StageOutcome]:
    started, uri, runner = time.monotonic(), _uri(session, stage), _runner(session)
    with runner.observed(stage):
        with _tracked(session, stage) as run:
            for name, ref in stage.spec.inputs().items():
                session.tracker.log_input(run, ref.stage, f"{session.store.uri}/{ref.stage}/{ref.digest}", ref.digest, name)
            result = runner.compute(
                stage,
                spec=_with_tracking(session, stage),
                shared=shared,
                on_part=partial(_replay, session, stage, run),
                on_log=get_run_logger().info,
                on_submitted=lambda submission_id: session.manifest.stage(stage.label, submission_id=submission_id),
            )
            images = session.tracker.drawn(figures_for(parse_result(result)))
            session.tracker.log_result(run, result, images)
            if isinstance(stage.spec, ingest.Spec):  # only now the number of rows is known, and MLflow keeps what it gets first
                log_files(session.tracker, run, stage.spec.fingerprints, parse_result(result).facts)
            session.tracker.log_input(run, stage.label, uri, stage.digest, "output")
        # In a shared job a stage may have run while an earlier task was waited for.
        seconds = result["seconds"] if shared else time.monotonic() - started
        session.manifest.finish(stage.label, result, state="ran", seconds=seconds)
        session.log_stage(stage, result, images)
    return Completed(message=stage.reason, data=StageOutcome(stage.label, stage.digest, uri, seconds))


def _runner(session: Session) -> StageRunner:
    return StageRunner(session.store, session.notify, session.ray.jobs)


def _uri(session: Session, stage: PlannedStage) -> str:
    return f"{session.store.uri}/{stage.stage}/{stage.digest}"


def _replay(session: Session, stage: PlannedStage, run: str, part: JournalPart) -> None:
    session.tracker.replay(run, part)
    session.page.follow(stage, part)


def _waits(session: Session, why: str) -> None:
    get_run_logger().info(why)
    session.notify("waiting", why)


def _with_tracking(session: Session, stage: PlannedStage) -> StageSpec:
    """Return the spec that is executed: ``promote`` also gets the address of the registry, and the MLflow run that its model belongs to:
    that of the whole run, whose page then links to the version."""
    spec = stage.spec
    if not isinstance(spec, promote.Spec):
        return spec
    run = session.parent_run
    tracking = promote.Tracking(uri=session.tracker.uri, run_id=run and session.tracker.mlflow_id(run, wait_seconds=30.0))
    return spec.evolve(tracking=tracking)


@contextmanager
def _tracked(session: Session, stage: PlannedStage) -> Iterator[str]:
    """Open a nested MLflow run that ends as the block does: FINISHED, FAILED, or KILLED for an interrupt."""
    inputs = {name.partition(".")[0] for name in stage.spec.inputs()}
    payload = {name: value for name, value in stage.spec.payload().items() if name not in inputs}
    tags = {"dora.stage": stage.stage, "dora.digest": stage.digest, "dora.reason": stage.reason, "dora.run_id": session.manifest.run_id}
    run = session.tracker.start_run(stage.label, parent=session.rounds.parent_of(stage), tags=tags, params=payload)
    session.tracked[stage.label] = run
    session.manifest.stage(stage.label, state="running")
    try:
        yield run
    except BaseException as error:
        session.manifest.stage(stage.label, state="failed", mlflow_run_id=session.tracker.mlflow_id(run))
        ended: Status = "FAILED" if isinstance(error, Exception) else "KILLED"
        if ended == "FAILED":  # before Prefect writes the traceback
            get_run_logger().error(f"{stage.label} failed: {error}")
        session.tracker.finish(run, ended, _job_tags(session, stage) | {"dora.error": str(error)})
        raise
    session.manifest.stage(stage.label, mlflow_run_id=session.tracker.mlflow_id(run))
    session.tracker.finish(run, "FINISHED", _job_tags(session, stage))


def _job_tags(session: Session, stage: PlannedStage) -> dict[str, str]:
    submission = session.manifest.run.stage(stage.label).submission_id
    return {"ray.submission_id": submission, "dora.attempt": submission.rsplit("-", 1)[1]} if submission else {}

"""Small stages of one run in one Ray job (``tasks/stages/batch.py``), on the head that the command started for itself.

A job costs 2 s to start and to end, torch and transformers another 2 s, Ray's workers 3 s, Ray Train 8 s; a small stage computes
for less time. So neighbouring stages with ``execution.workers: 0`` (:meth:`flows.planning.planned_stage.Plan.neighbours`) share one job
and its few warm processes; independent ones run side by side. Prefect, MLflow and the manifest still record every stage separately: each
task waits for its stage's result and follows its journal.

Only on an own head: on a cluster that other runs use too, a job's name is what lets a second run attach to a stage instead of
computing it at the same time, so there each stage stays a job.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, suppress

from dora_core.config.execution import Execution
from dora_core.errors import ServiceError, StageFailed
from flows.planning.planned_stage import PlannedStage
from flows.running.jobs import run_as_job
from infra.ray_jobs import RayJobs
from infra.store.json_files import StoredError
from infra.store.store import ERROR, Store
from tasks.runtime.stage import write_spec
from tasks.stages import batch

LOOK_SECONDS = 0.2

Own = Callable[[PlannedStage, Callable[[str], None]], AbstractContextManager[bool]]


class SharedJob:
    """One job for ``stages``. Its watcher is a thread; waiting and stopping belong to the thread that runs the tasks.

    Args:
        stages: their inputs are among them or finished.
        connect: gives the Jobs API, once the head is there.
        own: holds a stage's lock; yields whether another run has finished it.
    """

    def __init__(self, stages: Sequence[PlannedStage], store: Store, connect: Callable[[], RayJobs], own: Own):
        self._stages, self._store, self._connect, self._own = stages, store, connect, own
        self._owned = ExitStack()
        self._todo: list[PlannedStage] | None = None
        self._submitted: set[str] = set()
        self._done_elsewhere: set[str] = set()
        self._jobs: RayJobs | None = None
        self._watcher: Future[str] | None = None
        self._submission_id: str | None = None
        self._on_log: Callable[[str], None] = lambda line: None
        self._old_errors: dict[str, StoredError | None] = {}
        self._failed: set[str] = set()

    def prepare(self, stage: PlannedStage, on_wait: Callable[[str], None]) -> bool:
        """Take ownership of the stages to compute, first and after a failure of ``stage``; returns whether another run has done it.

        Args:
            on_wait: called with a sentence per run that this one waits for.
        """
        if self._todo is None or stage.digest in self._failed:
            self.close()
            # Locks are taken in one order, or two runs could deadlock.
            ordered = sorted(self._stages, key=lambda other: other.digest)
            done = {other.digest for other in ordered if self._owned.enter_context(self._own(other, on_wait))}
            self._todo = [other for other in self._stages if other.digest not in done]
            self._done_elsewhere |= done - self._submitted
            self._failed.clear()
        return stage.digest in self._done_elsewhere

    def run(self, stage: PlannedStage, *, on_log: Callable[[str], None], on_submitted: Callable[[str], None]) -> None:
        """Wait until ``stage`` is done; the first call after :meth:`prepare` submits the job.

        Args:
            on_log: called with the job's log lines until the stage is done.
            on_submitted: called with the job's submission id.

        Raises:
            StageFailed: the stage's own error, or the end of the job. ServiceError: Ray is away.
        """
        if not self._todo:  # finished before its job was killed
            return
        self._on_log = on_log
        if self._watcher is None:
            self._watcher = self._start()
        try:
            self._wait(self._watcher, stage, on_submitted)
        except Exception:
            self._failed.add(stage.digest)
            raise

    def _wait(self, watcher: Future[str], stage: PlannedStage, on_submitted: Callable[[str], None]) -> None:
        reported = False
        while True:
            ended = watcher.done()  # before the look for the result: a job that ended leaves nothing more
            if self._submission_id is not None and not reported:
                on_submitted(self._submission_id)
                reported = True
            if stage.spec.is_done(self._store):
                return
            error = self._error(stage)
            if error is not None and error != self._old_errors[stage.digest]:
                place = f"{self._store.uri}/{stage.stage}/{stage.digest}/{ERROR}"
                hint = "\n".join(filter(None, [error["hint"], f"details: {place}"]))
                raise StageFailed(f"stage {stage.stage}: {error['message']}", hint=hint, retryable=error["retryable"])
            if ended:
                watcher.result()  # raises the job's own failure
                raise StageFailed(f"stage {stage.stage}: its job succeeded but left no valid result")
            wait([watcher], timeout=LOOK_SECONDS)

    def close(self) -> None:
        """Stop the job if it still runs, wait for its watcher, and release its stages."""
        with suppress(ServiceError):  # the head does not answer; closing the session ends it next
            while self._jobs is not None and self._watcher is not None and not self._watcher.done():
                self._jobs.stop_all()
                wait([self._watcher], timeout=LOOK_SECONDS)
        self._watcher = self._todo = None
        self._owned.close()

    def _start(self) -> Future[str]:
        assert self._todo is not None, "run follows prepare"
        jobs = self._connect()
        self._jobs, self._submission_id = jobs, None
        self._submitted |= {stage.digest for stage in self._todo}
        self._old_errors = {stage.digest: self._error(stage) for stage in self._todo}
        for stage in self._todo:
            write_spec(stage.spec, self._store)
        spec, owned = batch_of(self._todo), self._owned.pop_all()

        def watch() -> str:
            with owned:  # until the job has ended
                return run_as_job(
                    jobs,
                    spec,
                    self._store,
                    on_log=lambda line: self._on_log(line),
                    on_submitted=lambda submission_id: setattr(self, "_submission_id", submission_id),
                )

        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shared-job")
        watcher = pool.submit(watch)
        pool.shutdown(wait=False)
        return watcher

    def _error(self, stage: PlannedStage) -> StoredError | None:
        error: StoredError | None = self._store.read_json(f"{stage.stage}/{stage.digest}/{ERROR}")
        return error


def batch_of(stages: Sequence[PlannedStage]) -> batch.Spec:
    """Return the stages as one batch, with as many actors as can work at a time; for one, the job's own process."""
    cpus = max(stage.spec.execution.cpus_per_worker for stage in stages)
    side_by_side = min(width(stages), int((os.cpu_count() or 1) // cpus))
    execution = Execution(workers=side_by_side if side_by_side > 1 else 0, cpus_per_worker=cpus)
    return batch.Spec(stages=[stage.spec.ref() for stage in stages], execution=execution)


def width(stages: Sequence[PlannedStage]) -> int:
    """Return the largest number of stages of equal depth, which may run side by side."""
    depths: dict[str, int] = {}
    for stage in stages:  # in running order
        depths[stage.digest] = 1 + max((depths.get(ref.digest, 0) for ref in stage.spec.predecessors().values()), default=0)
    return max(list(depths.values()).count(depth) for depth in depths.values())

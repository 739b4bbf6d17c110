"""Small stages of one run in one Ray job (``tasks/batch.py``), on the head that the command started for itself.

A job costs 2 s to start and to end, torch and transformers another 2 s, Ray's workers 3 s, Ray Train 8 s; a small stage computes
less. Stages with ``execution.workers: 0`` have no workers of their own, so neighbours among them (:meth:`flows.plan.Plan.neighbours`)
share one job and its few warm processes, and those that do not read one another run side by side. Prefect, MLflow and the
manifest still see every stage by itself: each task waits for its own stage's result and follows its own journal.

Only on an own head: on a cluster that other runs use too, a job's name is what lets a second run attach to a stage instead of
computing it at the same time, so there each stage stays a job.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

from dora_core.config import Execution
from dora_core.errors import ServiceError, StageFailed
from flows.jobs import run_as_job
from flows.plan import PlannedStage
from infra.ray_jobs import RayJobs
from infra.store import ERROR, Store
from tasks import batch
from tasks.stage import write_spec

LOOK_SECONDS = 0.2


class SharedJob:
    """One job for ``stages``. Its watcher is a thread; waiting and stopping belong to the thread that runs the tasks.

    Args:
        stages: unfinished; what they read is among them or finished.
        connect: gives the Jobs API, once the head is there.
    """

    def __init__(self, stages: Sequence[PlannedStage], store: Store, connect: Callable[[], RayJobs]):
        self._stages, self._store, self._connect = stages, store, connect
        self._spec = batch_of(stages)
        self._jobs: RayJobs | None = None
        self._watcher: Future[str] | None = None
        self._submission_id: str | None = None
        self._on_log: Callable[[str], None] = lambda line: None
        self._old_errors: dict[str, Any] = {}
        self._failed: set[str] = set()

    def run(self, stage: PlannedStage, *, on_log: Callable[[str], None], on_submitted: Callable[[str], None]) -> None:
        """Wait until ``stage`` is done; the first call submits the job, and one for a stage whose failure was raised submits it again.

        Args:
            on_log: gets the job's log lines while this stage is waited for.
            on_submitted: gets the job's submission id.

        Raises:
            StageFailed: the stage's own error, or how the job ended. ServiceError: Ray is away.
        """
        self._on_log = on_log
        if self._watcher is None or stage.digest in self._failed:
            self.close()
            self._start()
        assert self._watcher is not None
        try:
            self._wait(self._watcher, stage, on_submitted)
        except Exception:
            self._failed.add(stage.digest)
            raise

    def _wait(self, watcher: Future[str], stage: PlannedStage, on_submitted: Callable[[str], None]) -> None:
        told = False
        while True:
            ended = watcher.done()  # before the look for the result: a job that ended leaves nothing more
            if self._submission_id is not None and not told:
                on_submitted(self._submission_id)
                told = True
            if stage.spec.is_done(self._store):
                return
            error = self._error(stage)
            if error is not None and error != self._old_errors[stage.digest]:
                place = f"{self._store.uri}/{stage.stage}/{stage.digest}/{ERROR}"
                hint = "\n".join(filter(None, [error["hint"], f"details: {place}"]))
                raise StageFailed(f"stage {stage.stage}: {error['message']}", hint=hint, retryable=error["retryable"])
            if ended:
                watcher.result()  # raises how it ended
                raise StageFailed(f"stage {stage.stage}: its job succeeded but left no valid result")
            wait([watcher], timeout=LOOK_SECONDS)

    def close(self) -> None:
        """Stop the job if it still runs, and wait for its watcher."""
        with suppress(ServiceError):  # the head is silent; whoever closes the session ends it next
            while self._jobs is not None and self._watcher is not None and not self._watcher.done():
                self._jobs.stop_all()
                wait([self._watcher], timeout=LOOK_SECONDS)

    def _start(self) -> None:
        self._jobs, self._submission_id = self._connect(), None
        self._old_errors = {stage.digest: self._error(stage) for stage in self._stages}
        for stage in self._stages:
            write_spec(stage.spec, self._store)
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shared-job")
        self._watcher = pool.submit(
            run_as_job,
            self._jobs,
            self._spec,
            self._store,
            on_log=lambda line: self._on_log(line),
            on_submitted=lambda submission_id: setattr(self, "_submission_id", submission_id),
        )
        pool.shutdown(wait=False)

    def _error(self, stage: PlannedStage) -> dict[str, Any] | None:
        return self._store.read_json(f"{stage.stage}/{stage.digest}/{ERROR}")


def batch_of(stages: Sequence[PlannedStage]) -> batch.Spec:
    """The stages as one batch with as many processes as can work at a time; where that is one, the job's own."""
    cpus = max(stage.spec.execution.cpus_per_worker for stage in stages)
    side_by_side = min(width(stages), int((os.cpu_count() or 1) // cpus))
    execution = Execution(workers=side_by_side if side_by_side > 1 else 0, cpus_per_worker=cpus)
    return batch.Spec(stages=[stage.spec.ref() for stage in stages], execution=execution)


def width(stages: Sequence[PlannedStage]) -> int:
    """Most stages with equally many predecessors on their longest chain: those that may run side by side."""
    depths: dict[str, int] = {}
    for stage in stages:  # in running order
        depths[stage.digest] = 1 + max((depths.get(ref.digest, 0) for ref in stage.spec.predecessors().values()), default=0)
    return max(list(depths.values()).count(depth) for depth in depths.values())

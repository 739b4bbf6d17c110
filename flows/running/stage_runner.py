"""Brings one stage's result into the store, in this process or as a Ray job, and reports its progress: for flows and for commands on
files. Independent of Prefect and MLflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flows.planning.planned_stage import PlannedStage
from flows.running.jobs import run_as_job
from flows.running.shared_job import SharedJob
from infra.ray_jobs import RayJobs
from infra.store.journal import JournalPart, JournalReader
from infra.store.json_files import StoredResult
from infra.store.store import Store
from tasks.runtime.spec import StageSpec
from tasks.runtime.stage import execute
from tasks.stages.registry import STAGES


@dataclass(frozen=True)
class StageRunner:
    """Runs stages of one plan.

    Attributes:
        notify: calls a method of the observer by name, see :class:`flows.running.observer.Observer`.
        jobs: returns the Jobs API; called when a job stage needs it.
    """

    store: Store
    notify: Callable[..., None]
    jobs: Callable[[], RayJobs]

    def result(self, stage: PlannedStage) -> StoredResult:
        """Return the ``result.json`` of a finished stage."""
        result = self.store.read_result(stage.stage, stage.digest)
        assert result is not None, f"{stage.label} is done but has no result"
        return result

    @contextmanager
    def observed(self, stage: PlannedStage) -> Iterator[None]:
        """Report how the block ends: the stage ran, failed, or was cancelled (an exception outside ``Exception``)."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, Exception):
                self.notify("finished", stage, "failed", None, str(error).strip().partition("\n")[0] or type(error).__name__)
            else:
                self.notify("finished", stage, "cancelled", None)
            raise
        self.notify("finished", stage, "ran", self.result(stage))

    def compute(
        self,
        stage: PlannedStage,
        *,
        spec: StageSpec | None = None,
        shared: SharedJob | None = None,
        on_part: Callable[[JournalPart], None] = lambda part: None,
        on_log: Callable[[str], None] = lambda line: None,
        on_submitted: Callable[[str], None] = lambda submission_id: None,
        skip_earlier: bool = False,
    ) -> StoredResult:
        """Compute the stage while its journal is followed; returns its ``result.json``.

        Args:
            spec: the spec to execute if the stage runs in this process; None: the planned one.
            shared: the Ray job that it shares with other stages; None: a separate job.
            on_part: receives each new part of the journal, before the observer does.
            on_log: receives each line of a job's log.
            on_submitted: receives the job's submission id.
            skip_earlier: leave out the journal of earlier attempts; without it a resumed training shows its whole curve in MLflow.

        Raises:
            DoraError: the stage's own error. ServiceError: Ray is away.
        """

        def follow(part: JournalPart) -> None:
            on_part(part)
            for event in part.events:
                self.notify("event", stage, event)

        def log(line: str) -> None:
            on_log(line)
            self.notify("log", stage, line)

        journal = JournalReader(self.store, stage.stage, stage.digest)
        if skip_earlier:
            list(journal.new_events())
        with journal.following(follow):
            if stage.is_local:
                execute(spec or stage.spec, STAGES[stage.stage].run, self.store)
            elif shared is not None:
                shared.run(stage, on_log=log, on_submitted=on_submitted)
            else:
                run_as_job(self.jobs(), stage.spec, self.store, on_log=log, on_submitted=on_submitted)
        return self.result(stage)

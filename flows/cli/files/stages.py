"""Runs the stages behind ``dora generate`` and ``dora judge``, and reads their files.

They are the stages of a realignment (``tasks/stages/generate.py``, ``tasks/stages/judge.py``) after one that reads the file
(``tasks/stages/prompts.py``), so they are cached by content and settings, and an interrupted command continues where it was. They run in
this process; with ``execution.workers`` > 0 as jobs on Ray.

Left out: MLflow and Prefect (nothing here is a run of a project), and training a judge on a file: that is ``dora self-train``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from dora_core.strict_model import StrictModel
from flows.cli.files.tables import Output
from flows.cli.output import Out
from flows.planning.answers import answered_elsewhere
from flows.planning.planned_stage import Plan, PlannedStage
from flows.running.ray_cluster import RayCluster
from flows.running.stage_runner import StageRunner
from infra.ray_jobs import RayJobs
from infra.settings import Settings, apply_environment
from infra.store.store import Store
from tasks.runtime.spec import StageSpec
from tasks.runtime.stage import prepare_process, write_spec

if TYPE_CHECKING:
    import pyarrow as pa


class Done(StrictModel):
    """Result of a command on a file, its JSON document.

    Attributes:
        output: path of the file that was written.
        rows, metrics, facts: of the stage's ``result.json``.
    """

    output: str
    stage: str
    digest: str
    rows: int
    metrics: dict[str, float]
    facts: dict[str, JsonValue]


class FileStages:
    """Runs stages in this process or on Ray, with progress, through the place's store."""

    def __init__(self, name: str, out: Out, *, verbose: bool = False):
        prepare_process()
        self._name, self._out, self._verbose, self._settings = name, out, verbose, Settings()
        self.store = Store(self._settings.store_uri)

    def run(self, specs: Sequence[StageSpec]) -> list[Path]:
        """Return folders with the stages' files. Stages whose result is there are not run.

        Raises:
            DoraError: a stage's own error; its finished parts are kept, and the next call continues from there.
        """
        plan = Plan("files", tuple(_planned(spec, self.store) for spec in specs), {})
        for stage in plan.to_run:
            write_spec(stage.spec, self.store)  # `dora gc` finds in it the stages that this one reads
        with self._cluster(plan) as jobs, _logging(self._verbose), self._out.watching(self._verbose) as observer:
            observer.planned(self._name, plan)
            runner = StageRunner(self.store, lambda callback, *facts: getattr(observer, callback)(*facts), jobs)
            for stage in plan.stages:
                if stage.cached:
                    observer.finished(stage, "cached", runner.result(stage))
                    if note := answered_elsewhere(stage.spec, self.store):
                        self._out.say(f"note: {note}")
                    continue
                observer.started(stage)
                with runner.observed(stage):
                    runner.compute(stage, skip_earlier=True)
        return [self.store.fetch(spec.stage, spec.digest()) for spec in specs]

    def done(self, spec: StageSpec, output: Output) -> Done:
        """Return the result of a command whose last stage is ``spec``, which has run."""
        result = self.store.read_result(spec.stage, spec.digest())
        assert result is not None
        kept = {name: result[name] for name in ("rows", "metrics", "facts")}
        return Done(output=str(output.path), stage=spec.stage, digest=spec.digest(), **kept)

    @contextmanager
    def _cluster(self, plan: Plan) -> Iterator[Callable[[], RayJobs]]:
        """Yield the Jobs API, on a cluster that starts only if a stage of the plan is a job."""
        if not plan.needs_ray:
            yield _no_jobs
            return
        ray = RayCluster(self._settings, apply_environment(self._settings))
        ray.warm_up(f"{self._name}-{os.getpid()}", plan)
        try:
            yield ray.jobs
        finally:
            ray.close()


@contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """Show the stages' log; only its warnings unless ``verbose``."""
    logger = logging.getLogger("dora")
    before = logger.level
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _no_jobs() -> RayJobs:
    raise AssertionError("every stage of the plan runs in this process")


def _planned(spec: StageSpec, store: Store) -> PlannedStage:
    cached = spec.is_done(store)
    reason = "cached: same content and settings" if cached else "runs: its result is not in the store"
    return PlannedStage(spec.stage, spec, cached, reason, seconds=None, nothing_heavy=spec.execution.workers == 0)


def with_prompts(table: pa.Table, records: pa.Table) -> pa.Table:
    """Put the prompt of each record before ``table``'s columns: a string where all are one user message, else messages; ``task`` last, if
    any record has one."""
    import pyarrow as pa

    from dora_core.data.encoding import chat_turns, plain_prompt

    messages = records["prompt"].to_pylist()
    plain = all(len(prompt) == 1 and prompt[0]["role"] == "user" for prompt in messages)
    turns = [chat_turns(prompt)[0] for prompt in messages]  # without the empty field of prompts without tools
    texts = pa.array([plain_prompt(prompt) for prompt in messages]) if plain else pa.array(turns)
    place_of = {record: place for place, record in enumerate(records["record_id"].to_pylist())}
    places = pa.array([place_of[record] for record in table["record_id"].to_pylist()], pa.int64())
    table = table.add_column(0, "prompt", texts.take(places))
    if records["task"].null_count < len(records):
        table = table.append_column("task", records["task"].take(places))
    return table

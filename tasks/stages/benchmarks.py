"""Stage ``benchmarks``: scores of one model on tasks of lm-eval, for whether alignment cost ability.

Input: a policy (of a training stage, or the model as it is). Output: ``benchmarks.parquet`` (task, example, mark), examples in the
tasks' order, so that two models are compared example by example; in the facts each task's score. The digest covers the weights and the
content of the tasks' files, so a start that has been asked before is not asked again. Cost: what the tasks ask; each task is asked by one
worker and kept as soon as it is finished.

lm-eval is optional (``pip install "dora-realign[eval]"``); tasks by name read their data from the hub, tasks as YAML files may have
data beside them.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from dora_core.config.benchmarks import BenchmarksConfig
from dora_core.config.method import ModelConfig
from dora_core.evaluation.benchmarks import TaskScore
from dora_core.evaluation.metrics import estimate_text
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.facts import Facts as BaseFacts
from tasks.runtime.spec import ModelSource, StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.runtime.workers import ModelWorker, WorkerArguments
from tasks.tables.artifacts import BENCHMARKS_FILE

if TYPE_CHECKING:
    import pyarrow as pa


class Spec(StageSpec):
    """See the module docstring. ``files``: sha256 of every file of the tasks, by path."""

    stage: ClassVar[str] = "benchmarks"

    policy: StageRef | None
    model: ModelConfig
    benchmarks: BenchmarksConfig
    files: dict[str, str] = Field(default_factory=dict)


class Facts(BaseFacts):
    """Scores by task; a group's tasks are listed on their own."""

    scores: dict[str, TaskScore]


class AskArguments(WorkerArguments):
    """Arguments of :class:`Asker`."""

    model: ModelSource
    benchmarks: BenchmarksConfig


class Asker(ModelWorker[AskArguments]):
    """Asks one model the tasks of its rows. The output is one column, ``found``: scores and marks as JSON, by task."""

    def load(self) -> None:
        from dora_core.evaluation.benchmarks import check_installed

        check_installed()
        self._model, self._tokenizer = self.load_policy(self.arguments.model)

    def __call__(self, rows: pa.Table) -> pa.Table:
        import pyarrow as pa

        from dora_core.evaluation.benchmarks import run_tasks

        found = []
        for task in rows["task"].to_pylist():
            scores, marks = run_tasks(self._model, self._tokenizer, self.arguments.benchmarks.evolve(tasks=[task]), device=self.device)
            found.append(json.dumps({name: [score.model_dump(), marks[name].tolist()] for name, score in scores.items()}))
        return pa.table({"found": pa.array(found, pa.string())})


def run(spec: Spec, context: StageContext) -> StageOutput:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tasks.runtime.shards import run_shards

    arguments = AskArguments(
        store_uri=context.store.uri, execution=spec.execution, model=spec.policy or spec.model, benchmarks=spec.benchmarks
    )
    asked = run_shards(
        context,
        pa.table({"task": pa.array(spec.benchmarks.tasks, pa.string())}),
        name="tasks",
        worker=partial(Asker, arguments),
        execution=spec.execution.model_copy(update={"shard_rows": 1}),
        unit="tasks",
    )
    found = {name: both for text in asked["found"].to_pylist() for name, both in json.loads(text).items()}
    scores = {name: TaskScore.model_validate(score) for name, (score, _) in found.items()}
    marks = {name: values for name, (_, values) in found.items()}
    table = {
        "task": [name for name, values in marks.items() for _ in values],
        "example": [number for values in marks.values() for number in range(len(values))],
        "mark": [mark for values in marks.values() for mark in values],
    }
    pq.write_table(pa.table(table), context.path / BENCHMARKS_FILE, compression="zstd")
    metrics = {f"score_{name}": score.value.value for name, score in scores.items()}
    return StageOutput(rows=len(table["task"]), metrics=metrics, facts=Facts(scores=scores))


def headline(result: StageResult[Facts]) -> str:
    return ", ".join(f"{name} {estimate_text(score.value, '.3f')}" for name, score in list(result.facts.scores.items())[:3])


STAGE = Stage(Spec, run, facts=Facts, headline=headline)

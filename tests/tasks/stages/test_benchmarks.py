"""The stage ``benchmarks`` and its place in evaluation: marks by task, resume, paired changes and the gate's rule.

lm-eval is an optional dependency; here a function stands in its place. The tests of ``dora_core.evaluation.benchmarks`` ask a model
where lm-eval is installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dora_core.config.benchmarks import BenchmarksConfig
from dora_core.config.method import GateConfig
from dora_core.errors import ConfigError
from dora_core.evaluation import benchmarks as asking
from dora_core.evaluation.benchmarks import TaskScore
from dora_core.evaluation.metrics import Interval
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages import benchmarks, evaluate
from tests.tasks.conftest import IN_PROCESS, TINY
from tests.tasks.facts import assert_round_trip
from tests.tasks.stages.test_evaluate import Start, evaluate_spec

MARKS = {"easy": [1.0, 1.0, 0.0, 1.0], "hard": [0.0, 1.0]}


@pytest.fixture
def store(pipeline_start: Start, tmp_path: Path) -> Store:
    return Store(str(shutil.copytree(pipeline_start[0], tmp_path / "store")))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tasks that were asked, in order; the marks are :data:`MARKS`, and of `broken` none."""
    tasks: list[str] = []

    def answer(model: Any, tokenizer: Any, config: BenchmarksConfig, **device: Any) -> tuple[dict[str, TaskScore], dict[str, np.ndarray]]:
        [task] = config.tasks
        if task == "broken":
            raise ConfigError("benchmarks.tasks: lm-eval knows no task 'broken'")
        tasks.append(task)
        mean = float(np.mean(MARKS[task]))
        value = Interval(value=mean, low=0.0, high=1.0, n=len(MARKS[task]))
        return {task: TaskScore(metric="acc", value=value, shots=0)}, {task: np.array(MARKS[task])}

    monkeypatch.setattr(asking, "check_installed", lambda: None)
    monkeypatch.setattr(asking, "run_tasks", answer)
    return tasks


def spec_of(policy: Any, *tasks: str) -> benchmarks.Spec:
    return benchmarks.Spec(policy=policy, model=TINY, benchmarks=BenchmarksConfig(tasks=[*tasks]), execution=IN_PROCESS)


def test_marks_of_every_task_are_kept(pipeline_start: Start, store: Store, asked: list[str]) -> None:
    spec = spec_of(pipeline_start[2], "easy", "hard")
    result = execute(spec, benchmarks.run, store)
    assert_round_trip(result)
    table = pq.read_table(store.fetch("benchmarks", spec.digest()) / "benchmarks.parquet").to_pylist()
    assert [(row["task"], row["example"], row["mark"]) for row in table] == [
        (task, i, mark) for task, marks in MARKS.items() for i, mark in enumerate(marks)
    ]
    assert result["metrics"] == {"score_easy": 0.75, "score_hard": 0.5}
    assert benchmarks.headline(benchmarks.STAGE.parse(result)) == "easy 0.750 [0.000, 1.000], hard 0.500 [0.000, 1.000]"
    execute(spec, benchmarks.run, store)
    assert asked == ["easy", "hard"]
    facts = benchmarks.STAGE.parse(result).facts
    assert benchmarks.Facts.model_validate(facts.dump()) == facts


def test_a_task_that_was_asked_before_a_failure_is_not_asked_again(
    pipeline_start: Start, store: Store, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(pipeline_start[2], "easy", "broken")
    with pytest.raises(ConfigError, match="broken"):
        execute(spec, benchmarks.run, store)
    answer: Callable[..., Any] = asking.run_tasks
    monkeypatch.setattr(asking, "run_tasks", lambda m, t, config, **d: answer(m, t, BenchmarksConfig(tasks=["hard"]), **d))
    assert execute(spec, benchmarks.run, store)["metrics"] == {"score_easy": 0.75, "score_hard": 0.5}
    assert asked == ["easy", "hard"]


def test_the_content_of_the_tasks_files_is_part_of_the_digest(pipeline_start: Start) -> None:
    spec = spec_of(pipeline_start[2], "toy.yaml")
    assert len({spec.evolve(files={"toy.yaml": content}).digest() for content in ("a", "b")}) == 2


def test_evaluate_compares_example_by_example(
    pipeline_start: Start, store: Store, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy loses one of the four easy examples, −.25, and gains a hard one, +.5: the gate's rule reads the loss."""
    start = spec_of(pipeline_start[2], "easy", "hard")
    policy = start.evolve(files={"toy.yaml": "of another model"})  # stands for the digest of other weights
    execute(start, benchmarks.run, store)
    monkeypatch.setitem(MARKS, "easy", [1.0, 0.0, 0.0, 1.0])
    monkeypatch.setitem(MARKS, "hard", [1.0, 1.0])
    execute(policy, benchmarks.run, store)
    evaluation = evaluate_spec(
        pipeline_start,
        pipeline_start[2],
        benchmarks={"start": start.ref(), "policy": policy.ref()},
        gate=GateConfig(max_benchmark_drop=0.2),
    )
    result = execute(evaluation, evaluate.run, store)
    found = result["facts"]["benchmarks"]
    assert {task: each["change"]["value"] for task, each in found.items()} == {"easy": -0.25, "hard": 0.5}
    [rule] = [rule for rule in result["facts"]["gate"]["rules"] if rule["name"] == "benchmark_drop"]
    assert rule["value"] == 0.25 and not rule["passed"]
    assert result["metrics"]["benchmark_change_easy"] == -0.25
    assert "benchmarks" not in evaluate_spec(pipeline_start, pipeline_start[2]).payload(), "digests of before are found again"

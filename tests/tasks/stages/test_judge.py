"""Stage judge with the gold reward (every judge by itself: tests/tasks/judges)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dora_core.config.judging import GoldJudge
from dora_core.data.encoding import plain_prompt
from dora_core.testbed.mixture import Testbed
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages import generate, judge
from tests.tasks.sampled import MIXTURE, Start, generate_spec, output, records_of


@pytest.fixture
def store(pipeline_start: Start, tmp_path: Path) -> Store:
    shutil.copytree(pipeline_start[0], tmp_path / "store")
    return Store(str(tmp_path / "store"))


def test_scores_are_the_gold_reward_of_each_sample(pipeline_start: Start, store: Store) -> None:
    samples = generate_spec(pipeline_start)
    execute(samples, generate.run, store)
    spec = judge.Spec(records=pipeline_start[1], samples=samples.ref(), judge=GoldJudge(testbed=MIXTURE))
    result = execute(spec, judge.run, store)
    scores = output(store, spec, "scores.parquet")
    assert {f.name: str(f.type) for f in scores.schema} == {"record_id": "string", "sample": "int32", "score": "double"}
    table = output(store, samples, "samples.parquet")
    assert scores.select(["record_id", "sample"]) == table.select(["record_id", "sample"])
    prompt = {r["record_id"]: plain_prompt(r["prompt"]) for r in records_of(store, pipeline_start[1], "eval")}
    expected = [Testbed(MIXTURE).gold_reward(prompt[r["record_id"]], r["response"]) for r in table.to_pylist()]
    assert scores["score"].to_pylist() == expected
    assert result["metrics"]["mean_score"] == pytest.approx(np.mean(expected))

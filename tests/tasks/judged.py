"""Reward models and judges on the tiny realignment, for tests of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from dora_core.config.execution import Execution
from dora_core.config.judging import ImplicitJudge, RewardModelJudge, RewardTrainingConfig
from dora_core.config.method import OptimizationConfig
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages import judge, reward
from tests.tasks.conftest import GOLDEN, IN_PROCESS, TEXT, TINY

Start = tuple[Path, StageRef, StageRef, StageRef]
OPTIMIZATION = OptimizationConfig(epochs=8, batch_size=8, learning_rate=2e-3)


def reward_spec(pipeline: Start, execution: Execution = IN_PROCESS, data: str = "all", **other) -> reward.Spec:
    _, records, policy, _ = pipeline
    training = RewardTrainingConfig(data=data, optimization=OPTIMIZATION)
    fields = {"start": policy, "model": TINY, "training": training, "golden_sources": GOLDEN} | other
    return reward.Spec(records=records, text=TEXT, execution=execution, **fields)


def judge_spec(pipeline: Start, kind: RewardModelJudge | ImplicitJudge, execution: Execution = IN_PROCESS, **other) -> judge.Spec:
    return judge.Spec(records=pipeline[1], judge=kind, text=TEXT, execution=execution, **other)


def scores_of(store: Store, spec: judge.Spec) -> np.ndarray:
    execute(spec, judge.run, store)
    return pq.read_table(store.fetch("judge", spec.digest()) / "scores.parquet")["score"].to_numpy()


def records_of(store: Store, start: Start, split: str) -> list[dict]:
    return pq.read_table(store.fetch("ingest", start[1].digest) / "records.parquet", filters=[("split", "=", split)]).to_pylist()

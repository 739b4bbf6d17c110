"""The judge that is a reward model. Its training, and the judge on Ray: ``tests/tasks/stages/test_reward.py``."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dora_core.config.judging import RewardModelJudge
from dora_core.config.method import ModelConfig
from dora_core.errors import ModelError
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages import reward
from tests.tasks.judged import Start, judge_spec, reward_spec, scores_of


@pytest.fixture
def store(pipeline_start: Start, tmp_path: Path) -> Store:
    shutil.copytree(pipeline_start[0], tmp_path / "store")
    return Store(str(tmp_path / "store"))


def test_a_model_by_name_scores_as_the_stage_that_trained_it(pipeline_start: Start, store: Store) -> None:
    spec = reward_spec(pipeline_start)
    execute(spec, reward.run, store)
    named = RewardModelJudge(model=ModelConfig(source=str(store.fetch("reward", spec.digest()) / "model")))
    by_stage = scores_of(store, judge_spec(pipeline_start, RewardModelJudge(), model=spec.ref(), split="train"))
    assert np.array_equal(scores_of(store, judge_spec(pipeline_start, named, split="train")), by_stage)
    policy = RewardModelJudge(model=ModelConfig(source=str(store.fetch("sft", pipeline_start[2].digest) / "model")))
    with pytest.raises(ModelError, match="is not a reward model"):
        scores_of(store, judge_spec(pipeline_start, policy))

"""The judge that is the known mixture's gold reward. Its scores: ``tests/tasks/stages/test_judge.py``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dora_core.config.judging import GoldJudge
from dora_core.config.method import TestbedConfig
from dora_core.errors import DataError
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages import generate, judge
from tests.tasks.sampled import Start, generate_spec


@pytest.fixture
def store(pipeline_start: Start, tmp_path: Path) -> Store:
    shutil.copytree(pipeline_start[0], tmp_path / "store")
    return Store(str(tmp_path / "store"))


def test_prompts_of_other_data_are_refused(store: Store, pipeline_start: Start) -> None:
    samples = generate_spec(pipeline_start)
    execute(samples, generate.run, store)
    two_topics = GoldJudge(testbed=TestbedConfig(topics=2))
    with pytest.raises(DataError, match="prompts are not of the known mixture"):
        execute(judge.Spec(records=pipeline_start[1], samples=samples.ref(), judge=two_topics), judge.run, store)

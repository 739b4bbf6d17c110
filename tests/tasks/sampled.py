"""Samples of a tiny policy: specs and readers for the tests of the stages generate, judge and truth."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dora_core.config.execution import Execution
from dora_core.config.method import (
    GenerateConfig,
    TestbedConfig,
)
from infra.store.store import Store
from tasks.runtime.stage import StageRef, StageSpec
from tasks.stages import generate
from tests.tasks.conftest import IN_PROCESS, TEXT, TINY

Start = tuple[Path, StageRef, StageRef, StageRef]
MIXTURE = TestbedConfig(prompts=80, responses_per_prompt=3)  # as in conftest.py
SAMPLING = GenerateConfig(samples=3, max_new_tokens=24)


def generate_spec(start: Start, sampling: GenerateConfig = SAMPLING, execution: Execution = IN_PROCESS, **other) -> generate.Spec:
    _, records, policy, _ = start
    return generate.Spec(records=records, policy=policy, model=TINY, text=TEXT, generate=sampling, execution=execution, **other)


def output(store: Store, spec: StageSpec, name: str) -> pa.Table:
    return pq.read_table(store.fetch(spec.stage, spec.digest()) / name)


def records_of(store: Store, ref: StageRef, split: str) -> list[dict]:
    return pq.read_table(store.fetch(ref.stage, ref.digest) / "records.parquet", filters=[("split", "=", split)]).to_pylist()

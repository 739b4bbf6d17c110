"""The judge that is a policy's implicit reward."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dora_core.config.judging import ImplicitJudge
from dora_core.config.method import OptimizationConfig, SftConfig
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages import reference, sft
from tests.tasks.conftest import GOLDEN, IN_PROCESS, TEXT, TINY
from tests.tasks.judged import Start, judge_spec, records_of, scores_of


@pytest.fixture
def store(pipeline_start: Start, tmp_path: Path) -> Store:
    shutil.copytree(pipeline_start[0], tmp_path / "store")
    return Store(str(tmp_path / "store"))


def test_the_implicit_reward_is_the_log_ratio_of_two_policies(pipeline_start: Start, store: Store) -> None:
    """Against the log-probabilities that the reference stage writes for either policy."""
    optimization = OptimizationConfig(epochs=1, batch_size=16, learning_rate=3e-3)
    fields = {"records": pipeline_start[1], "model": TINY, "text": TEXT, "execution": IN_PROCESS}
    policy = sft.Spec(**fields, sft=SftConfig(data="best", optimization=optimization), golden_sources=GOLDEN, start=pipeline_start[2])
    logps = reference.Spec(**fields, start=policy.ref())
    execute(policy, sft.run, store)
    execute(logps, reference.run, store)
    tables = [pq.read_table(store.fetch("reference", ref.digest) / "logps.parquet") for ref in (logps.ref(), pipeline_start[3])]
    held_out = {r["record_id"] for r in records_of(store, pipeline_start, "eval")}
    policy_logp, start_logp = ([r["logp"] for r in table.to_pylist() if r["record_id"] in held_out] for table in tables)
    tokens = np.array([r["tokens"] for r in tables[0].to_pylist() if r["record_id"] in held_out])
    expected = 0.2 * (np.array(policy_logp) - np.array(start_logp))
    assert np.ptp(expected) > 0.1, "two different policies"
    for per_token, divisor in ((False, 1), (True, tokens)):
        spec = judge_spec(pipeline_start, ImplicitJudge(beta=0.2, per_token=per_token), model=policy.ref(), reference=pipeline_start[2])
        assert scores_of(store, spec) == pytest.approx(expected / divisor, abs=1e-4)

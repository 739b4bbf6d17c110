"""Small stages share one Ray job: which ones, and how such a job ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.config.loading import load_config
from flows.planning.plan import build_plan
from flows.planning.planned_stage import Plan
from flows.running.shared_job import batch_of, width
from infra.store.store import Store
from tests.flows.dora import Dora, wait_for

CONFIG = """
project: small
data: {{train: [{{path: {data}}}]}}
text: {{max_prompt_tokens: 32, max_response_tokens: 64}}
policy: {{hidden_size: 32, heads: 2, layers: 1, vocab_size: 320}}
classifier: {{encoder: {{hidden_size: 32, layers: 1, heads: 2, vocab_size: 400}}, epochs: 1, folds: 2}}
sft: {{optimization: {{epochs: {epochs}, batch_size: 8}}}}
align: {{optimization: {{max_steps: 3, batch_size: 8}}}}
evaluate: {{kl_prompts: 2, kl_max_new_tokens: 8, bootstrap_samples: 100, twins: [erm]}}
compare: null
promotion: {{mode: never}}
execution: {{default: {{workers: 0}}}}
"""
JOBS = ["classify", "calibrate", "sft", "reference", "training_data", "align", "training_data (erm twin)", "align (erm twin)", "evaluate"]
FOREVER, SHORT = 1000, 1


@pytest.fixture
def config(mixture: Path) -> Callable[[int], str]:
    return lambda epochs: CONFIG.format(data=mixture, epochs=epochs)


def plan_of(folder: Path, config: str, *overrides: str) -> Plan:
    (folder / "c.yaml").write_text(config)
    return build_plan(load_config(folder / "c.yaml", overrides), Store(str(folder / "store")))


def test_a_batch_is_as_wide_as_its_stages_are_independent(
    tmp_path: Path, config: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = plan_of(tmp_path, config(SHORT)).to_run[2:-1]
    assert [s.label for s in stages] == JOBS
    assert width(stages) == 2 and width(stages[:2]) == 1  # calibrate and its policy's start; a chain
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert batch_of(stages).execution.workers == 2
    assert batch_of(stages[:2]).execution.workers == 0
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert batch_of(stages).execution.workers == 0


@pytest.mark.component
def test_every_stage_is_seen_by_itself(dora: Dora, config: Callable[[int], str]) -> None:
    manifest = dora.run("realign", config(SHORT))
    stages = {s["label"]: s for s in manifest["stages"]}
    assert [s["state"] for s in stages.values()] == ["ran"] * 12
    submissions = {stages[label]["submission_id"] for label in JOBS}
    assert len(submissions) == 1 and submissions.pop().startswith("dora-batch-")
    assert set(dora.mlflow_states()) == {"FINISHED"} and len(dora.mlflow_states()) == 13  # the run and its twelve stages
    assert manifest["warnings"] == []
    for label in JOBS:
        result = dora.store().read_result(stages[label]["stage"], stages[label]["digest"])
        assert stages[label]["seconds"] == result["seconds"]
    assert dora.processes() == []


@pytest.mark.component
def test_a_failed_stage_tells_its_own_error_and_ends_the_job(dora: Dora, config: Callable[[int], str], tmp_path: Path) -> None:
    empty = tmp_path / "model"
    empty.mkdir()
    (empty / "config.json").write_text(json.dumps({"model_type": "llama"}))
    process = dora.start("realign", config(SHORT), "--json", "--set", f"policy.source={empty}")
    output, log = process.communicate(timeout=300)
    assert process.returncode == 1, log
    error = json.loads(output)["error"]
    assert error["type"] == "StageFailed" and error["message"].startswith("stage sft: ") and str(empty) in error["message"]
    states = {s["label"]: s["state"] for s in dora.manifests()[0]["stages"]}
    assert states["sft"] == "failed" and states["calibrate"] == "ran" and states["align"] == "pending"
    assert dora.processes() == []


@pytest.mark.component
def test_ctrl_c_stops_the_job_and_what_it_finished_is_kept(dora: Dora, config: Callable[[int], str]) -> None:
    process = dora.start("realign", config(FOREVER))
    wait_for(process, "sft: 1/")
    os.killpg(process.pid, signal.SIGINT)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 130, log
    assert dora.processes() == []
    manifest = dora.manifests()[0]
    assert manifest["status"] == "cancelled"
    done = {s["label"] for s in manifest["stages"] if dora.store().is_done(s["stage"], s["digest"])}
    assert {"ingest", "classify", "calibrate"} <= done and "sft" not in done

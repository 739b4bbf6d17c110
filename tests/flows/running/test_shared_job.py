"""Small stages share one Ray job: which ones, and how one of them fails. A job as a whole: ``tests/flows/test_realign.py``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dora_core.config.method import ModelConfig
from dora_core.models.loading import build_policy, train_tokenizer
from flows.running.shared_job import batch_of, width
from tests.flows.dora import Dora
from tests.flows.small_realign import JOBS, plan_of, small_realign


def test_a_batch_is_as_wide_as_its_stages_are_independent(tmp_path: Path, mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = plan_of(tmp_path, small_realign(mixture)).to_run[2:-1]
    assert [s.label for s in stages] == JOBS
    assert width(stages) == 2 and width(stages[:2]) == 1  # calibrate and its policy's start; a chain
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert batch_of(stages).execution.workers == 2
    assert batch_of(stages[:2]).execution.workers == 0
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert batch_of(stages).execution.workers == 0


@pytest.mark.component
def test_a_failed_stage_tells_its_own_error_and_ends_the_job(dora: Dora, mixture: Path, tmp_path: Path) -> None:
    """A model whose weights are missing, which only loading them shows."""
    empty = tmp_path / "model"
    tokenizer = train_tokenizer(["the cat sat on a mat"], 300)
    tokenizer.save_pretrained(empty)
    build_policy(ModelConfig(hidden_size=32, layers=1, heads=2), tokenizer, 128).config.save_pretrained(empty)
    process = dora.start("realign", small_realign(mixture), "--json", "--set", f"policy.source={empty}")
    output, log = process.communicate(timeout=300)
    assert process.returncode == 1, log
    error = json.loads(output)["error"]
    assert error["type"] == "StageFailed" and error["message"].startswith("stage sft: ") and str(empty) in error["message"]
    states = {s["label"]: s["state"] for s in dora.manifests()[0]["stages"]}
    assert states["sft"] == "failed" and states["calibrate"] == "ran" and states["align"] == "pending"
    assert dora.processes() == []

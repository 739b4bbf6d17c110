"""The real study in a process of its own: Prefect API, Ray head with warm actors, MLflow on SQLite, tiny models on 40 prompts."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.flows.dora import Dora, wait_for

pytestmark = pytest.mark.component

CONFIG = """
project: small-study
seeds: [0, 1]
tables: [pairwise, ablation, calibration, confidence]
testbed: {prompts: 40, responses_per_prompt: 3}
golden_responses: 60
text: {max_prompt_tokens: 32, max_response_tokens: 64}
policy: {hidden_size: 32, heads: 2, layers: 1, vocab_size: 400}
classifier: {encoder: {hidden_size: 32, layers: 1, heads: 2, vocab_size: 400}, epochs: 1, folds: 2}
sft: {optimization: {epochs: 1, batch_size: 16}}
align: {optimization: {max_steps: 3, batch_size: 8}}
evaluate: {kl_prompts: 2, kl_max_new_tokens: 8, bootstrap_samples: 100}
pairwise: [{loss: dpo}]
listwise: []
focus: [dpo]
ablation: [erm, dora]
generate: {samples: 2, max_new_tokens: 16}
bootstrap_samples: 100
execution: {default: {workers: 2}}
"""
CELLS = 3  # erm, dora, dora with exact factors
STAGES = 6 + 2 + 4 * CELLS  # of one seed: data to factors, the start's samples, and each policy


def test_a_study_then_nothing_to_do(dora: Dora) -> None:
    first = dora.run("study", CONFIG)
    assert [(s["label"], s["state"]) for s in first["stages"]] == [("seed 0", "ran"), ("seed 1", "ran"), ("tables", "ran")]
    assert first["stages"][0]["reason"] == f"runs: {STAGES} of {STAGES} stages, 0 cached"
    assert first["status"] == "completed" and first["flow"] == "study" and first["warnings"] == []
    project, _, what = first["name"].split(" · ", 2)  # between them the day
    assert (project, what) == ("small-study", f"{CELLS} cells · 2 seeds")

    store, tables = dora.store(), first["stages"][-1]
    batch = store.read_result("batch", first["stages"][0]["digest"])
    assert batch is not None and batch["facts"]["done"] == STAGES and batch["facts"]["seconds"].keys() >= {"align", "generate", "truth"}
    folder = store.fetch(tables["stage"], tables["digest"])
    pairwise = pq.read_table(folder / "tables" / "pairwise.parquet").to_pylist()
    assert {row["objective"] for row in pairwise} == {"erm", "dora"}
    assert {(row["measure"], row["seeds"]) for row in pairwise} >= {("win_rate", 2), ("kl", 2)}
    page = Path(first["links"]["report"]).read_text()
    assert page.startswith("<!") and "dora" in page

    runs = dict(dora.mlflow("select name, status from runs"))
    assert set(runs.values()) == {"FINISHED"} and len(runs) == 1 + 3 + CELLS
    win_rates = dora.mlflow("select r.name from runs r join metrics m using (run_uuid) where m.key = 'win_rate'")
    assert len(win_rates) == CELLS
    artifacts = {p.name for p in (dora.home / "mlartifacts").rglob("*") if p.is_file()}
    assert {"study.html", "pairwise.parquet", "calibration.parquet"} <= artifacts

    again = dora.start("study", CONFIG)
    shown, log = again.communicate(timeout=300)
    assert again.returncode == 0, log
    assert "win rate against the start" in shown and "nothing to do: every stage was cached" in shown
    second = dora.manifests()[-1]
    assert [s["state"] for s in second["stages"]] == ["cached"] * 3
    assert second["stages"][0]["reason"] == f"cached: all {STAGES} stages"
    assert len(dora.mlflow("select name from runs")) == 1 + 3 + CELLS, "the run that computed nothing has none"
    assert not list((dora.home / "ray").glob("*"))  # no head was started, and the first one is gone
    assert dora.processes() == []


@pytest.mark.chaos
def test_ctrl_c_leaves_nothing_running_and_keeps_what_is_finished(dora: Dora) -> None:
    long = ("--set", "seeds=[0]", "--set", "align.optimization.max_steps=100000")  # training that no machine finishes before the signal
    process = dora.start("study", CONFIG, "-v", *long)
    wait_for(process, "(2 of ")
    os.killpg(process.pid, signal.SIGINT)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "nothing is running; run the same command to resume" in log
    assert dora.processes() == []
    assert set(dora.mlflow_states()) == {"KILLED"}
    assert dora.manifests()[0]["status"] == "cancelled"
    again = dora.start("study", CONFIG, "--dry-run", *long)
    plan, _ = again.communicate(timeout=60)
    assert f"of {STAGES} stages" in plan and f"{STAGES} of {STAGES}" not in plan

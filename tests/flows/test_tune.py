"""A search in a process of its own: Prefect API, Ray head, Ray Tune, MLflow on SQLite, a tiny model on 40 prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.dora import Dora
from tests.flows.small_realign import small_realign

pytestmark = pytest.mark.component

SETTINGS = [
    "tune={rungs: 1, folds: 2, bootstrap_samples: 100, fraction: 1.0}",
    "align.objective.name=erm",
    'data.golden_sources=["*"]',  # so that the few held-out prompts have golden pairs
    "evaluate.twins=[]",
]
SET = [word for setting in SETTINGS for word in ("--set", setting)]
OVER = ["--over", "align.optimization.learning_rate=1e-4,3e-4", "--trials", "2"]


def test_a_search_then_the_same_from_memory(dora: Dora, mixture: Path) -> None:
    config = small_realign(mixture)
    first = dora.run("tune", config, *SET, *OVER)
    assert first["status"] == "completed" and first["flow"] == "tune" and first["stages"][-1]["label"] == "tune"
    trials = {trial["name"]: trial for trial in first["search"]["trials"]}
    assert set(trials) == {"as configured", "trial 1", "trial 2"} and {trial["state"] for trial in trials.values()} == {"finished"}
    assert first["options"] == "" or first["options"].startswith("--set align.optimization.learning_rate=")
    page = Path(first["links"]["report"]).read_text()
    assert "as configured" in page and "align.optimization.learning_rate" in page and "<svg" in page

    parent = "left join tags t on t.run_uuid = r.run_uuid and t.key = 'mlflow.parentRunId'"
    parents = dict(dora.mlflow(f"select r.name, t.value from runs r {parent}"))
    assert parents["trial 1"] == parents["trial 2"] == parents["as configured"] == parents["tune"] is not None
    curves = dora.mlflow("select distinct m.key from metrics m join runs r using (run_uuid) where r.name = 'trial 1'")
    assert {"golden_loss", "golden_accuracy", "loss"} <= {key for (key,) in curves}

    again = dora.run("tune", config, *SET, "--resume")
    assert {stage["state"] for stage in again["stages"]} == {"cached"} and again["search"] == first["search"]

"""The real flow in a process of its own: Prefect API, Ray head, MLflow on SQLite, a tiny model on 40 prompts."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from dora_core.config.method import TestbedConfig
from dora_core.testbed.mixture import Testbed
from flows.running.abandoned import release
from infra.prefect_api import own_prefect_api
from infra.settings import Settings
from tests.faults import Recovery
from tests.flows.dora import Dora, wait_for
from tests.flows.small_realign import FOREVER, JOBS, STAGES, small_realign

pytestmark = pytest.mark.component


@pytest.mark.parametrize("on_ray_train", [None, pytest.param("align", marks=pytest.mark.nightly)])
def test_a_run_then_nothing_to_do(fresh_dora: Dora, mixture: Path, on_ray_train: str | None) -> None:
    dora, config = fresh_dora, small_realign(mixture, on_ray_train=on_ray_train)
    first = dora.run("realign", config)
    stages = {s["label"]: s for s in first["stages"]}
    assert [s["state"] for s in stages.values()] == ["ran"] * STAGES
    assert first["status"] == "completed" and first["decision"] in ("challenger", "undecided", "refused")
    assert first["warnings"] == []
    assert Path(first["links"]["report"]).read_text().startswith("<!")
    assert set(dora.mlflow_states()) == {"FINISHED"} and len(dora.mlflow_states()) == 1 + STAGES
    if on_ray_train is None:
        submissions = {stages[label]["submission_id"] for label in JOBS}
        assert len(submissions) == 1 and submissions.pop().startswith("dora-batch-")
        for label in JOBS:  # each is seen by itself
            result = dora.store().read_result(stages[label]["stage"], stages[label]["digest"])
            assert stages[label]["seconds"] == result["seconds"]
    assert dora.processes() == []

    second = dora.run("realign", config)
    assert [s["state"] for s in second["stages"]] == ["cached"] * STAGES
    assert second["stages"][3]["reason"] == f"cached: same inputs and settings as {first['run_id']}"
    assert second["decision"] == "unchanged" and second["promotion"]["decision"] == first["decision"]
    assert not list((dora.home / "ray").glob("*"))  # no head was started, and the first one is gone
    assert dora.processes() == []
    whole_runs = "select run_uuid from runs where run_uuid not in (select run_uuid from tags where key = 'mlflow.parentRunId')"
    shown = dict(dora.mlflow(f"select key, count(*) from latest_metrics where run_uuid in ({whole_runs}) group by key"))
    assert {"accuracy_all", "ranking_policy", "ece", "kl"} <= shown.keys()
    assert set(shown.values()) == {1}, "the run that computed nothing has none"
    assert len(dora.mlflow_states()) == 1 + STAGES


@pytest.mark.nightly  # the note of the stage is tested beside it
def test_data_without_a_shift_is_said_to_need_no_calibration(dora: Dora, tmp_path: Path) -> None:
    data = Testbed(TestbedConfig(prompts=60, shift=0.0)).write(tmp_path / "same.parquet")
    encoder, execution = "{hidden_size: 32, layers: 1, heads: 2, vocab_size: 400}", "{default: {workers: 0}}"
    manifest = dora.run(
        "calibrate",
        f"project: same\ndata: {{train: [{{path: {data}}}]}}\n"
        f"classifier: {{encoder: {encoder}, epochs: 1, folds: 2}}\nexecution: {execution}\n",
    )
    calibrate = manifest["stages"][-1]
    assert calibrate["notes"][-1] == "no source can be told from golden: this data needs no calibration"
    facts = dora.store().read_result("calibrate", calibrate["digest"])["facts"]
    assert facts["no_shift"] and all(source["mean"] == 1.0 for source in facts["h"].values())


@pytest.mark.parametrize("on_ray_train", [None, pytest.param("sft", marks=pytest.mark.chaos)])
def test_ctrl_c_leaves_nothing_running_and_the_next_run_goes_on(dora: Dora, mixture: Path, on_ray_train: str | None) -> None:
    process = dora.start("realign", small_realign(mixture, FOREVER, on_ray_train))
    wait_for(process, "sft: 1/")
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)  # impatience must not interrupt the stopping
    _, log = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "nothing is running; run the same command to resume" in log
    assert dora.processes() == []
    assert set(dora.mlflow_states()) == {"FINISHED", "KILLED"}
    [manifest] = dora.manifests()
    assert manifest["status"] == "cancelled"
    done = {s["label"] for s in manifest["stages"] if dora.store().is_done(s["stage"], s["digest"])}
    assert {"ingest", "classify", "calibrate"} <= done and "sft" not in done


@pytest.mark.chaos
@pytest.mark.fault(7)
def test_kill_9_is_cleaned_up_from_outside(dora: Dora, mixture: Path, monkeypatch: pytest.MonkeyPatch, recovery: Recovery) -> None:
    process = dora.start("realign", small_realign(mixture, FOREVER))
    wait_for(process, "sft: 1/")
    process.kill()
    process.communicate()
    assert dora.processes() != []
    monkeypatch.setenv("DORA_HOME", str(dora.home))
    settings = Settings()
    recovery.begins()
    assert release(settings, dora.manifests()[0]["flow_run_id"], "it was killed")
    recovery.ends()
    assert dora.manifests()[0]["status"] == "cancelled" and dora.manifests()[0]["error"]["message"] == "it was killed"
    assert set(dora.mlflow_states()) == {"FINISHED", "KILLED"}
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with own_prefect_api(settings) as wait:  # the next command ends the API that the killed one left
        wait()
        assert sum("prefect" in " ".join(p.cmdline()) for p in dora.processes()) <= 1
    assert dora.processes() == []

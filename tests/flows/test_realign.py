"""The real flow in a process of its own: Prefect API, Ray head, MLflow on SQLite, a tiny model on 40 prompts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dora_core.config.method import TestbedConfig
from dora_core.testbed.mixture import Testbed
from flows.running.abandoned import release
from infra.prefect_api import own_prefect_api
from infra.settings import Settings
from tests.faults import Recovery
from tests.flows.dora import Dora, wait_for

pytestmark = pytest.mark.component

CONFIG = """
project: small
data: {{train: [{{path: {data}}}]}}
text: {{max_prompt_tokens: 32, max_response_tokens: 64}}
policy: {{hidden_size: 32, heads: 2, layers: 1, vocab_size: 320}}
sft: {{optimization: {{epochs: {epochs}, batch_size: 8}}}}
align: {{objective: {{name: erm}}, optimization: {{max_steps: 3, batch_size: 8}}}}
evaluate: {{kl_prompts: 2, kl_max_new_tokens: 8, bootstrap_samples: 100}}
compare: null
promotion: {{mode: never}}
execution: {{default: {{workers: 0}}, {on_ray_train}: {{workers: 1}}}}
"""
FOREVER, SHORT = 1000, 1


@pytest.fixture
def config(mixture: Path) -> Callable[..., str]:
    return lambda epochs, on_ray_train: CONFIG.format(data=mixture, epochs=epochs, on_ray_train=on_ray_train)


def test_a_run_then_nothing_to_do(fresh_dora: Dora, config: Callable[..., str]) -> None:
    dora = fresh_dora
    first = dora.run("realign", config(SHORT, "align"))
    assert [s["state"] for s in first["stages"]] == ["ran"] * 7
    assert first["status"] == "completed" and first["decision"] in ("challenger", "undecided", "refused")
    assert first["warnings"] == []
    assert Path(first["links"]["report"]).read_text().startswith("<!")
    assert set(dora.mlflow_states()) == {"FINISHED"} and len(dora.mlflow_states()) == 8

    second = dora.run("realign", config(SHORT, "align"))
    assert [s["state"] for s in second["stages"]] == ["cached"] * 7
    assert second["stages"][3]["reason"] == f"cached: same inputs and settings as {first['run_id']}"
    assert second["decision"] == first["decision"]
    assert not list((dora.home / "ray").glob("*"))  # no head was started, and the first one is gone
    assert dora.processes() == []
    whole_runs = "select run_uuid from runs where run_uuid not in (select run_uuid from tags where key = 'mlflow.parentRunId')"
    shown = dora.mlflow(f"select key, count(*) from latest_metrics where run_uuid in ({whole_runs}) group by key")
    assert dict(shown) == dict.fromkeys(("accuracy_all", "ranking_policy", "ece", "kl"), 2), "also of the run that computed nothing"


def test_data_without_a_shift_is_said_to_need_no_calibration(dora: Dora, tmp_path: Path) -> None:
    data = Testbed(TestbedConfig(prompts=60, shift=0.0)).write(tmp_path / "same.parquet")
    encoder, execution = "{hidden_size: 32, layers: 1, heads: 2, vocab_size: 400}", "{default: {workers: 0}, calibrate: {workers: 1}}"
    manifest = dora.run(
        "calibrate",
        f"project: same\ndata: {{train: [{{path: {data}}}]}}\n"
        f"classifier: {{encoder: {encoder}, epochs: 1, folds: 2}}\nexecution: {execution}\n",
    )
    calibrate = manifest["stages"][-1]
    assert calibrate["notes"][-1] == "no source can be told from golden: this data needs no calibration"
    facts = dora.store().read_result("calibrate", calibrate["digest"])["facts"]
    assert facts["no_shift"] and all(source["mean"] == 1.0 for source in facts["h"].values())


def test_ctrl_c_leaves_nothing_running_and_the_next_run_goes_on(dora: Dora, config: Callable[..., str]) -> None:
    process = dora.start("realign", config(FOREVER, "sft"))
    wait_for(process, "sft: 1/")
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)  # impatience must not interrupt the stopping
    _, log = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "nothing is running; run the same command to resume" in log
    assert dora.processes() == []
    assert set(dora.mlflow_states()) == {"FINISHED", "KILLED"}
    assert dora.manifests()[0]["status"] == "cancelled"


@pytest.mark.fault(7)
def test_kill_9_is_cleaned_up_from_outside(
    dora: Dora, config: Callable[..., str], monkeypatch: pytest.MonkeyPatch, recovery: Recovery
) -> None:
    process = dora.start("realign", config(FOREVER, "align"))
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

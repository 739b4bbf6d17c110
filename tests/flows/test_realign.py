"""The real flow in a process of its own: Prefect API, Ray head, MLflow on SQLite, a tiny model on 40 prompts."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.prefect_api import own_prefect_api
from flows.session import release
from infra.settings import Settings
from infra.store import Store

pytestmark = pytest.mark.component

CONFIG = """
project: small
data: {{train: [{{path: {data}}}]}}
text: {{max_prompt_tokens: 32, max_response_tokens: 64}}
policy: {{hidden_size: 32, heads: 2, layers: 1, vocab_size: 320}}
sft: {{optimization: {{epochs: {epochs}, batch_size: 8}}}}
align: {{objective: {{name: erm}}, optimization: {{max_steps: 3, batch_size: 8}}}}
evaluate: {{kl_prompts: 2, kl_max_new_tokens: 8, bootstrap_samples: 100}}
promotion: {{mode: never}}
execution: {{default: {{workers: 1}}}}
"""
FOREVER, SHORT = 1000, 1


class Dora:
    """Starts ``dora`` with a home of its own, and knows its processes by that home."""

    def __init__(self, folder: Path, data: Path):
        self.folder, self._data, self.home = folder, data, folder / "home"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("DORA_", "PREFECT_", "MLFLOW_", "RAY_"))}
        self.environment |= {"DORA_HOME": str(self.home)}

    def start(self, epochs: int, *arguments: str) -> subprocess.Popen[str]:
        (self.folder / "c.yaml").write_text(CONFIG.format(data=self._data, epochs=epochs))
        command = [sys.executable, "-c", "from flows.cli import main; main()", "realign", "-c", str(self.folder / "c.yaml"), *arguments]
        # A group of its own: a signal to it reaches what a Ctrl-C in a terminal reaches.
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(self, epochs: int) -> dict[str, Any]:
        process = self.start(epochs, "--json")
        output, log = process.communicate(timeout=500)
        assert process.returncode == 0, log
        return json.loads(output)

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DORA_HOME") == str(self.home) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def manifests(self) -> list[dict[str, Any]]:
        store = Store(str(self.home / "store"))
        return [store.read_json(f"runs/{run}/run.json") for run in store.list("runs")]

    def mlflow_states(self) -> list[str]:
        with sqlite3.connect(self.home / "mlflow.db") as database:
            return [row[0] for row in database.execute("select status from runs")]


@pytest.fixture
def dora(tmp_path: Path, mixture: Path) -> Iterator[Dora]:
    dora = Dora(tmp_path, mixture)
    yield dora
    for process in dora.processes():
        process.kill()


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{text!r} never came: {process.stderr.read() if process.stderr else ''}")


def test_a_run_then_nothing_to_do(dora: Dora) -> None:
    first = dora.run(SHORT)
    assert [s["state"] for s in first["stages"]] == ["ran"] * 6
    assert first["status"] == "completed" and first["decision"] in ("challenger", "refused")
    assert first["warnings"] == []
    assert Path(first["links"]["report"]).read_text().startswith("<!")
    assert set(dora.mlflow_states()) == {"FINISHED"} and len(dora.mlflow_states()) == 7

    second = dora.run(SHORT)
    assert [s["state"] for s in second["stages"]] == ["cached"] * 6
    assert second["stages"][3]["reason"] == f"cached: same inputs and settings as {first['run_id']}"
    assert second["decision"] == first["decision"]
    assert not list((dora.home / "ray").glob("*"))  # no head was started, and the first one is gone
    assert dora.processes() == []


def test_ctrl_c_leaves_nothing_running_and_the_next_run_goes_on(dora: Dora) -> None:
    process = dora.start(FOREVER)
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


def test_kill_9_is_cleaned_up_from_outside(dora: Dora, monkeypatch: pytest.MonkeyPatch) -> None:
    process = dora.start(FOREVER)
    wait_for(process, "sft: 1/")
    process.kill()
    process.communicate()
    assert dora.processes() != []
    monkeypatch.setenv("DORA_HOME", str(dora.home))
    settings = Settings()
    assert release(settings, dora.manifests()[0]["flow_run_id"])
    assert dora.manifests()[0]["status"] == "cancelled"
    assert set(dora.mlflow_states()) == {"FINISHED", "KILLED"}
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with own_prefect_api(settings) as wait:  # the next command ends the API that the killed one left
        wait()
        assert sum("prefect" in " ".join(p.cmdline()) for p in dora.processes()) <= 1
    assert dora.processes() == []

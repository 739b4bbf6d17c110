"""Kill parts of a command that runs without servers: the command, its job, its Ray head; and run it twice at once."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from infra.store.journal import JournalReader
from tests.faults import Recovery
from tests.flows.dora import Dora, wait_for
from tests.guarantee import same_as_fault_free

pytestmark = [pytest.mark.component, pytest.mark.chaos]

CHECKPOINT_EVERY = 10
CONFIG = """
project: here
data: {{train: [{{path: {data}}}]}}
text: {{max_prompt_tokens: 32, max_response_tokens: 64}}
policy: {{hidden_size: 32, heads: 2, layers: 1, vocab_size: 320}}
sft: {{optimization: {{epochs: 200, batch_size: 8}}}}
align: {{objective: {{name: erm}}, optimization: {{max_steps: 3, batch_size: 8}}}}
execution: {{default: {{workers: 0, checkpoint_every: {every}}}}}
"""


@pytest.fixture
def config(mixture: Path) -> str:
    return CONFIG.format(data=mixture, every=CHECKPOINT_EVERY)


def find(dora: Dora, text: str) -> list[psutil.Process]:
    """The processes of this home, shells apart, whose command line has ``text``."""
    found = []
    for process in dora.processes():
        with suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            found += [process] if text in line and not line.startswith("/bin/sh") else []
    return found


def steps(dora: Dora, manifest: dict, label: str) -> list[int]:
    """The steps that a stage has measured, in all its attempts."""
    digest = next(s["digest"] for s in manifest["stages"] if s["label"] == label)
    return [event["step"] for event in JournalReader(dora.store(), label, digest).new_events() if event["kind"] == "metrics"]


def wait_for_checkpoint(dora: Dora) -> None:
    deadline = time.monotonic() + 500
    while not any(step > CHECKPOINT_EVERY for manifest in dora.manifests() for step in steps(dora, manifest, "sft")):
        assert time.monotonic() < deadline, "sft does not train"
        time.sleep(0.1)


@pytest.mark.fault(6, 12)
@pytest.mark.parametrize("victim", ["-m tasks.stages batch", "gcs_server"], ids=["its job", "its head"])
def test_what_a_command_started_dies_and_the_command_goes_on(
    dora: Dora, config: str, victim: str, recovery: Recovery, tmp_path: Path
) -> None:
    process = dora.start("align", config)
    wait_for_checkpoint(dora)
    [found] = find(dora, victim)
    found.kill()
    recovery.begins()
    _, log = process.communicate(timeout=300)
    recovery.ends()
    assert process.returncode == 0, log
    [manifest] = dora.manifests()
    assert {s["state"] for s in manifest["stages"]} == {"ran"}
    assert steps(dora, manifest, "sft").count(1) == 1, "the second attempt went on from a checkpoint"
    failed = dora.mlflow("select value from tags where key = 'dora.error'")
    assert len(failed) == 1 and ("killed by SIGKILL" if "batch" in victim else "has ended") in failed[0][0]
    assert sorted(dora.mlflow_states()) == ["FAILED"] + ["FINISHED"] * 6
    assert dora.processes() == [] and dora.prefect("select state_type from flow_run") == [("COMPLETED",)]
    same_as_fault_free(dora.store(), manifest, tmp_path)


@pytest.mark.fault(6)
def test_a_job_that_is_killed_every_time_ends_the_run_with_its_cause(dora: Dora, config: str) -> None:
    process, killed = dora.start("align", config, "--json"), set()
    while process.poll() is None:
        for driver in find(dora, "-m tasks.stages batch"):
            driver.kill()
            killed.add(driver.pid)
        time.sleep(0.1)
    output, log = process.communicate()
    assert process.returncode == 1 and len(killed) == 3, log
    error = json.loads(output)["error"]
    assert "its process was killed by SIGKILL (out of memory is the usual cause)" in error["message"]
    assert error["hint"].startswith("run the same command again") and "job log: " in error["hint"]
    [manifest] = dora.manifests()
    assert manifest["status"] == "failed" and manifest["error"]["message"] == error["message"]
    assert sorted(dora.mlflow_states()) == ["FAILED"] * 4 + ["FINISHED"], "the run, three attempts at sft, and ingest"
    assert dora.prefect("select state_type from flow_run") == [("FAILED",)] and dora.processes() == []


@pytest.mark.fault(7)
def test_the_next_command_closes_a_killed_one_and_goes_on(dora: Dora, config: str, recovery: Recovery, tmp_path: Path) -> None:
    process = dora.start("align", config)
    wait_for_checkpoint(dora)
    process.kill()
    process.communicate()
    recovery.begins()
    manifest = dora.run("align", config)
    recovery.ends()
    [killed] = [m for m in dora.manifests() if m["run_id"] != manifest["run_id"]]
    assert killed["status"] == "cancelled" and killed["error"]["message"] == "its process is gone"
    assert [s["state"] for s in killed["stages"]] == ["ran", "failed", "pending", "pending", "pending"]
    assert sorted(dora.prefect("select state_type from flow_run")) == [("COMPLETED",), ("CRASHED",)]
    assert dora.prefect("select name from task_run where state_type not in ('COMPLETED', 'CRASHED')") == []
    assert "RUNNING" not in dora.mlflow_states()
    assert manifest["stages"][0]["state"] == "cached" and steps(dora, manifest, "sft").count(1) == 1
    assert dora.processes() == [] and not list((dora.home / "spool").glob("*"))
    same_as_fault_free(dora.store(), manifest, tmp_path)


@pytest.mark.fault(16)
def test_of_two_equal_commands_one_computes_and_the_other_waits_for_it(dora: Dora, config: str, recovery: Recovery) -> None:
    longer = ("--set", "sft.optimization.epochs=300")  # than the second takes to start
    first = dora.start("align", config, *longer)
    wait_for(first, "sft: 1/")
    second = dora.start("align", config, *longer)
    recovery.begins()
    wait_for(second, f"waits for {dora.manifests()[0]['run_id']} (process {first.pid}), which computes the same ")
    _, log = first.communicate(timeout=300)
    assert first.returncode == 0, log
    _, log = second.communicate(timeout=300)
    assert second.returncode == 0, log
    recovery.ends()
    one, other = sorted(dora.manifests(), key=lambda manifest: manifest["started"])
    assert {s["state"] for s in one["stages"]} == {"ran"} and {s["state"] for s in other["stages"]} == {"cached"}
    assert steps(dora, one, "sft").count(1) == steps(dora, one, "align").count(1) == 1
    assert set(dora.mlflow_states()) == {"FINISHED"} and dora.processes() == []
    assert list((dora.home / "store" / "locks").iterdir()) == []

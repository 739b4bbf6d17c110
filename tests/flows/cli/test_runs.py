"""`dora runs` and `dora logs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.cli.runs import run_ids
from infra.store.store import Store
from tests.flows.cli.invoked import assert_help, assert_wrong, document, invoke
from tests.flows.report.runs import make_run

FAILED = {"message": "stage align: the loss became NaN at step 7", "hint": "lower align.optimization.learning_rate"}


@pytest.fixture
def store(own_home: Path) -> Store:
    """Two runs: an older one that failed at align, a newer one that was refused."""
    store = Store(str(own_home / "store"))
    new = make_run(store, ["human", "model"], run_id="demo-20260201-120000-bbbb", started=1_769_900_000.0)
    record = store.read_json(f"runs/{new}/run.json")
    stages: list[dict[str, Any]] = [stage | {"digest": "9" * 64} if stage["stage"] == "align" else stage for stage in record["stages"]]
    at = next(n for n, stage in enumerate(stages) if stage["stage"] == "align")
    stages = [stage | {"state": "failed" if n == at else "pending"} if n >= at else stage for n, stage in enumerate(stages)]
    config = record["config"] | {"align": {"objective": {"name": "dora", "lambda": 2.0}}}
    old = {"run_id": "demo-20260131-120000-aaaa", "started": 1_769_800_000.0, "status": "failed", "error": FAILED, "decision": None}
    store.write_json("runs/demo-20260131-120000-aaaa/run.json", record | old | {"stages": stages, "config": config})
    return store


def test_the_list_is_newest_first_with_verdict_and_why_in_80_columns(store: Store) -> None:
    found = document("runs")["runs"]
    assert [(run["verdict"], run["run_id"][-4:]) for run in found] == [("refused", "bbbb"), ("failed", "aaaa")]
    assert found[1]["why"] == FAILED["message"] and found[0]["why"].startswith("KL(policy‖start)")
    assert found[0]["link"] == "http://127.0.0.1:4200/runs/flow-run/1"
    shown = invoke("runs")
    assert shown.code == 0 and all(len(line) <= 80 for line in shown.out.splitlines())
    assert len(document("runs", "-n", "1")["runs"]) == 1
    assert_wrong("runs", "--project", "dmeo", says="did you mean 'demo'")


def test_one_run_has_its_reason_and_the_next_step(store: Store) -> None:
    shown = invoke("runs", "show", "demo-20260131")
    assert shown.code == 0 and FAILED["message"] in shown.out and f"next: {FAILED['hint']}" in shown.out
    assert "refused" not in shown.out, "the later run's decision"
    assert all(len(line) <= 80 for line in shown.out.splitlines())
    assert document("runs", "show")["run_id"] == "demo-20260201-120000-bbbb"


def test_two_runs_differ_in_settings_and_results(store: Store) -> None:
    found = document("runs", "diff", "demo-20260131", "latest")
    assert found["settings"] == {"align.objective.lambda": ["2.0", "1.0"]}
    assert found["stages"] == ["align"] and found["verdicts"] == ["failed", "refused"]
    shown = invoke("runs", "diff", "demo-20260131")
    assert "align.objective.lambda: 2.0 → 1.0" in shown.out and "results: align differ" in shown.out
    assert "settings: equal" in invoke("runs", "diff", "latest", "latest").out


def test_the_log_of_a_failed_job_is_printed(store: Store, own_home: Path) -> None:
    submission = next(s for s in document("runs", "show", "demo-20260131")["stages"] if s["label"] == "align")["submission_id"]
    assert_wrong("logs", "demo-20260131", says="was not kept")
    (own_home / "logs").mkdir()
    (own_home / "logs" / f"{submission}.log").write_text("step 7: loss nan\n")
    assert invoke("logs", "demo-20260131").out == "step 7: loss nan\n\n"
    assert_wrong("logs", "demo-20260131", "algin", says="did you mean 'align'")
    assert_wrong("logs", "latest", says="no stage of demo-20260201-120000-bbbb runs or has failed")
    assert_wrong("logs", "latest", "ingest", says="ingest has no job, hence no log: it was cached")


def test_help() -> None:
    assert_help("logs")
    assert_help("runs", "--project", "--count")


def test_a_shell_completes_run_ids(store: Store) -> None:
    assert run_ids("") == ["latest", "demo-20260201-120000-bbbb", "demo-20260131-120000-aaaa"]
    assert run_ids("demo-202601") == ["demo-20260131-120000-aaaa"] and run_ids("x") == []
    environment = {"_DORA_COMPLETE": "complete_bash", "COMP_WORDS": "dora runs show demo-202601", "COMP_CWORD": "3"}
    assert CliRunner().invoke(app, [], prog_name="dora", env=environment).stdout.split() == ["demo-20260131-120000-aaaa"]

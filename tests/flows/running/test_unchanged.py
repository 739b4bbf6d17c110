"""A command with nothing to do: recorded without Prefect, MLflow and Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.config.models import RealignConfig
from flows.planning.latest import read_latest, write_latest
from flows.planning.planned_stage import Plan
from flows.run_record import read_record, write_record
from flows.running import unchanged as module
from flows.running.surroundings import Surroundings
from flows.running.unchanged import unchanged
from tasks.runtime.stage import StageOutput, execute
from tasks.stages.registry import STAGES
from tests.flows.running.planned import plan_of, register
from tests.flows.running.sessions import Watching

CONFIG = RealignConfig.model_validate({"project": "p", "data": {"train": [{"path": "x"}]}})


@pytest.fixture
def watching() -> Watching:
    return Watching()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watching: Watching) -> Surroundings:
    """A project whose last run computed its one stage; the plan finds it cached."""
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    for name in ("PREFECT_API_URL", "DORA_PREFECT_API_URL", "MLFLOW_TRACKING_URI", "DORA_MLFLOW_URI", "DORA_STORE", "DORA_RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    register(monkeypatch, lambda spec, context: StageOutput(rows=1, metrics={"kl": 0.5}))
    here = replace(Surroundings.of_run(watching), command="dora realign -c p.yaml")
    execute(plan_of(1).stages[0].spec, STAGES["toy"].run, here.store)
    plans(monkeypatch, cached=True)
    return here


def plans(monkeypatch: pytest.MonkeyPatch, *, cached: bool) -> Plan:
    plan = plan_of(1)
    plan = replace(plan, stages=(replace(plan.stages[0], cached=cached, reason="cached: as before"),), notes=("no champion",))
    monkeypatch.setattr(module, "build_plan", lambda *_, **__: plan)
    return plan


def test_a_run_with_nothing_to_do_is_recorded(here: Surroundings, watching: Watching) -> None:
    assert unchanged(CONFIG, "promote", here, "realign") is None, "the project's first run"
    write_latest(here.store, module.build_plan(CONFIG, here.store), "p-earlier")
    ended = unchanged(CONFIG, "promote", here, "realign")
    assert ended is not None and ended.warnings == ["no champion"]
    run = read_record(here.store, ended.record.run_id)
    assert run == ended.record and (run.status, run.flow, run.ran, run.command) == ("completed", "realign", 0, "dora realign -c p.yaml")
    assert [stage.state for stage in run.stages] == ["cached"] and run.finished is not None and run.flow_run_id is None
    assert watching.calls == [("planned", run.run_id), ("finished", "toy 1", "cached")]
    assert read_latest(here.store, "p")["toy 1"].run_id == run.run_id
    assert not (here.settings.root / "mlflow.db").exists() and not here.settings.prefect_home.exists()


def test_what_is_to_run_sent_or_cleaned_up_takes_the_flow(here: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_latest(here.store, module.build_plan(CONFIG, here.store), "p-earlier")
    served = replace(here, places=replace(here.places, prefect_api_url="http://127.0.0.1:4200/api"))
    assert unchanged(CONFIG, "promote", served, "realign") is None, "a server keeps the history"
    done = unchanged(CONFIG, "promote", here, "realign")
    assert done is not None
    write_record(here.store, done.record.evolve(status="running"))
    assert unchanged(CONFIG, "promote", here, "realign") is None, "a run that was killed"
    write_record(here.store, done.record)
    here.settings.outbox.mkdir()
    (here.settings.outbox / "1.jsonl").touch()
    assert unchanged(CONFIG, "promote", here, "realign") is None, "updates wait for MLflow"
    (here.settings.outbox / "1.jsonl").unlink()
    plans(monkeypatch, cached=False)
    assert unchanged(CONFIG, "promote", here, "realign") is None


def test_it_needs_neither_prefect_nor_ray() -> None:
    code = "import sys, flows.running.unchanged; print(*sorted({'prefect', 'mlflow', 'ray', 'torch', 'matplotlib'} & set(sys.modules)))"
    environment: Any = dict(os.environ)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == ""

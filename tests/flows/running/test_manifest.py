"""The manifest during its run: written at every change, continued after a decision."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from flows.config.models import RealignConfig
from flows.planning.planned_stage import Plan
from flows.run_record import read_record
from flows.running.manifest import FlowRun, Manifest, waiting
from infra.settings import Settings
from infra.store.store import Store
from tests.flows.running.planned import plan_of

FLOW_RUN = FlowRun("realign", "0007c4d3-a244-49a0-84d7-d13a2280d659", "p · data")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return Store(str(tmp_path / "store"))


def opened(store: Store, plan: Plan, flow_run: FlowRun = FLOW_RUN) -> Manifest:
    config = RealignConfig.model_validate({"project": "p", "data": {"train": [{"path": "x"}]}})
    return Manifest.open(store, plan, config, flow_run, Settings().effective())


def test_every_change_is_in_the_file(store: Store) -> None:
    manifest = opened(store, plan_of(1, 2))
    assert [stage.state for stage in manifest.run.stages] == ["pending", "pending"] and manifest.run_id.startswith("p-")
    manifest.stage("toy 2", state="running", submission_id="dora-toy-1")
    manifest.update(remark="why")
    found = read_record(store, manifest.run_id)
    assert found == manifest.run and found.remark == "why" and found.submissions == {"dora-toy-1"}
    assert [stage.state for stage in found.stages] == ["pending", "running"]
    assert found.process is not None and found.process.recorded().alive()


def test_a_run_that_waited_goes_on_with_its_finished_stages(store: Store) -> None:
    plan = plan_of(1, 2)
    before = opened(store, plan)
    before.stage("toy 1", state="ran", seconds=3.0)
    before.stage("toy 2", state="ran", seconds=4.0)
    before.update(status="waiting", finished=9.0)
    assert [run.run_id for run in waiting(store)] == [before.run_id]
    first, second = plan.stages
    cached = replace(plan, stages=(replace(first, cached=True), second))  # the second one's result was deleted meanwhile
    again = opened(store, cached, replace(FLOW_RUN, is_again=True))
    assert again.run_id == before.run_id and again.run.status == "running" and again.run.finished is None
    assert [(s.state, s.seconds) for s in again.run.stages] == [("ran", 3.0), ("pending", None)]
    assert again.run.waited == pytest.approx(again.run.process.created - 9.0, rel=0.01) and again.run.seconds == 0.0  # type: ignore[union-attr]
    assert not list(waiting(store))
    other = opened(store, cached, FlowRun("realign", "11111111-a244-49a0-84d7-d13a2280d659", "q", is_again=True))
    assert other.run_id != before.run_id


@pytest.mark.fault(35)
def test_a_run_that_waited_during_an_upgrade_computes_what_the_upgrade_changed(store: Store) -> None:
    """The new release has another digest for the second stage: the first one's result counts, the second one's does not."""
    before = opened(store, plan_of(1, 2))
    for label in ("toy 1", "toy 2"):
        before.stage(label, state="ran", seconds=3.0)
    before.update(status="waiting", finished=9.0)
    first, other = plan_of(1, 3).stages
    upgraded = replace(plan_of(1, 2), stages=(replace(first, cached=True), replace(other, label="toy 2", cached=True)))
    again = opened(store, upgraded, replace(FLOW_RUN, is_again=True))
    assert again.run_id == before.run_id
    assert [(s.label, s.digest, s.state) for s in again.run.stages] == [("toy 1", first.digest, "ran"), ("toy 2", other.digest, "pending")]


@pytest.mark.fault(33)
@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_during_a_run_does_not_change_its_duration(store: Store, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    manifest, clock = opened(store, plan_of(1)), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600 * hours)
    manifest.update(status="completed", finished=manifest.now())
    assert 0.0 <= manifest.run.seconds < 60.0

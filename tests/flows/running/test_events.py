"""Prefect events of stages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.run_record import Links, RunRecord, StageRecord
from flows.running import events
from infra.store.store import Store
from tasks.runtime.descriptor import Event, Stage
from tasks.runtime.stage import StageOutput, execute
from tasks.stages.registry import STAGES
from tests.flows.running.planned import Spec, plan_of


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def keep(event: str, resource: dict[str, str], related: Any, payload: dict[str, Any]) -> None:
        found.append({"event": event, "of": resource} | payload)

    monkeypatch.setattr(events, "emit_event", keep)
    return found


def session_of(tmp_path: Path, state: str) -> Any:
    """A session in which the toy stage has ended in ``state``."""
    [stage] = plan_of(1).stages
    store = Store(str(tmp_path))
    execute(stage.spec, lambda spec, context: StageOutput(rows=1, metrics={"kl": 0.5}), store)
    entry = StageRecord.model_validate({"stage": "toy", "label": stage.label, "digest": stage.digest, "state": state})
    run = RunRecord(
        run_id="p-1", name="p · data", project="p", started=1.0, status="running", stages=[entry], links=Links(prefect="http://ui/1")
    )
    manifest = SimpleNamespace(run=run)
    return SimpleNamespace(store=store, manifest=manifest, url=None, warnings=[]), stage


def announces(monkeypatch: pytest.MonkeyPatch, event: Event | None) -> None:
    monkeypatch.setitem(STAGES, "toy", Stage(Spec, lambda spec, context: StageOutput(rows=1), event=lambda result, store: event))


@pytest.mark.parametrize(("stops", "message"), [(False, "ready"), (True, "toy 1: ready")])
def test_a_stage_that_ran_sends_its_event_with_links_and_metrics(
    stops: bool, message: str, tmp_path: Path, sent: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    announces(monkeypatch, Event("toy.ready", "ready", {"kl": 0.5}, stops=stops))
    session, stage = session_of(tmp_path, "ran")
    events.announce(session, stage)
    [event] = sent
    assert (event["event"], event["message"], event["figures"], event["link"]) == ("dora.toy.ready", message, {"kl": 0.5}, "http://ui/1")
    assert event["of"]["prefect.resource.id"] == "dora.project.p" and event["digest"] == stage.digest and event["mlflow"] == ""


def test_a_cached_stage_and_one_without_an_event_send_nothing(
    tmp_path: Path, sent: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    announces(monkeypatch, Event("toy.ready", "ready", {}))
    events.announce(*session_of(tmp_path / "a", "cached"))
    announces(monkeypatch, None)
    events.announce(*session_of(tmp_path / "b", "ran"))
    assert sent == []


def test_an_event_that_cannot_be_sent_becomes_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("too large")

    monkeypatch.setattr(events, "emit_event", refuse)
    announces(monkeypatch, Event("toy.ready", "ready", {}))
    session, stage = session_of(tmp_path, "ran")
    events.announce(session, stage)
    assert session.warnings == ["event dora.toy.ready was not sent: ValueError: too large"]

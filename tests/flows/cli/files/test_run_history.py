"""Two runs side by side, and the log of a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dora_core.errors import ConfigError
from flows.cli.files.run_history import compared, listed, log_of
from flows.report.find import ReportError
from flows.run_record import RunRecord
from infra.settings import Settings
from infra.store.store import Store


def record(store: Store, run_id: str, digest: str, kl: float, **changes: Any) -> RunRecord:
    """A run of one stage with a result of its own."""
    result = {"stage": "evaluate", "digest": digest, "metrics": {"kl": kl, "rows": 3.0}, "files": {}}
    store.write_json(f"evaluate/{digest}/result.json", result)
    stage = {"stage": "evaluate", "label": "evaluate", "digest": digest, "state": "ran", "submission_id": f"job-{run_id}"}
    whole = {"run_id": run_id, "project": "p", "started": 0.0, "status": "failed", "stages": [stage]}
    return RunRecord.model_validate(whole | changes)


def test_settings_and_metrics_that_differ(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    one = record(store, "a", "1" * 64, 2.0, config={"align": {"beta": 0.1, "loss": None}, "gone": True})
    other = record(store, "b", "2" * 64, 3.0, config={"align": {"beta": 0.2, "loss": None}, "new": [1]})
    found = compared(store, one, other)
    assert found.settings == {"align.beta": ("0.1", "0.2"), "gone": ("True", "–"), "new": ("–", "[1]")}
    assert found.stages == ["evaluate"] and found.metrics == {"evaluate.kl": (2.0, 3.0)}, "rows are equal"
    same = compared(store, one, one)
    assert (same.settings, same.stages, same.metrics) == ({}, [], {})


def test_metrics_of_a_stage_that_a_run_did_not_finish_are_not_its_own(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    one, other = record(store, "a", "1" * 64, 2.0), record(store, "b", "2" * 64, 3.0)
    unfinished = other.evolve(stages=[other.stages[0].evolve(state="pending")])
    assert compared(store, one, unfinished).metrics == {}


def test_the_log_is_that_of_the_stage_that_failed(tmp_path: Path) -> None:
    store, settings = Store(str(tmp_path / "store")), Settings(home=tmp_path)
    run = record(store, "a", "1" * 64, 2.0)
    failed = run.evolve(stages=[run.stages[0].evolve(state="failed")])
    with pytest.raises(ReportError, match="was not kept"):
        log_of(settings, failed, None)
    settings.log_folder.mkdir()
    (settings.log_folder / "job-a.log").write_text("Traceback")
    assert log_of(settings, failed, None) == ("evaluate", "Traceback") == log_of(settings, run, "evaluate")
    with pytest.raises(ConfigError, match="no stage of a runs or has failed"):
        log_of(settings, run, None)


def test_an_empty_store_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="there are no runs") as caught:
        listed(Store(str(tmp_path)), None, 5)
    assert "dora demo" in caught.value.hint

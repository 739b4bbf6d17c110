"""What commands print."""

from __future__ import annotations

import pytest

from flows.cli.output import Meter, Out
from flows.planning.planned_stage import Plan


def test_the_rate_counts_this_attempt_only() -> None:
    meter = Meter()
    event = {"kind": "progress", "total": 100, "unit": "rows", "note": ""}
    assert meter.read("a", event | {"done": 50, "time": 10.0}) == "50/100 rows"
    assert meter.read("a", event | {"done": 70, "time": 14.0}) == "70/100 rows, 5/s"
    assert meter.read("a", {"kind": "metrics"}) == ""


def test_a_plan_shows_its_notes(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan("night", (), {}, notes=("this run starts from the base",))
    Out(False).plan(plan)
    assert "note: this run starts from the base" in capsys.readouterr().out and plan.to_json()["notes"] == [*plan.notes]

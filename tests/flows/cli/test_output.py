"""What commands print."""

from __future__ import annotations

from typing import Any

import pytest

from flows.cli.output import Lines, Meter, Out
from tests.flows.running.planned import plan_of


def test_rate_and_time_left_are_those_of_the_last_minute() -> None:
    meter = Meter()
    event = {"kind": "progress", "total": 100, "unit": "rows", "note": ""}
    assert meter.read("a", event | {"done": 50, "time": 10.0}) == "50/100 rows"
    assert meter.read("a", event | {"done": 70, "time": 14.0}) == "70/100 rows, 5/s, 6 s left"
    assert meter.read("a", event | {"done": 72, "time": 54.0}) == "72/100 rows, 0.5/s, 56 s left"  # 22 rows since 10.0
    assert meter.read("a", event | {"done": 76, "time": 104.0}) == "76/100 rows, 0.0667/s, 6 min left"  # 6 rows since 14.0
    assert meter.read("a", event | {"done": 78, "time": 400.0}) == "78/100 rows", "it has waited for a node meanwhile"
    assert meter.read("a", event | {"done": 40, "time": 401.0}) == "40/100 rows", "resumed from a checkpoint"
    assert meter.read("a", {"kind": "metrics"}) == ""


def test_without_a_terminal_a_stage_that_says_nothing_is_mentioned_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    said, now = list[str](), [0.0]
    monkeypatch.setattr("flows.cli.output.time.monotonic", lambda: now[0])
    out: Any = Out(as_json=False)
    monkeypatch.setattr(out, "say", said.append)
    lines, (stage,) = Lines(out, verbose=False), plan_of(1).stages
    lines.life.look(100.0)
    lines.started(stage)
    for second in (29.0, 30.0, 31.0, 60.0):
        now[0] = second
        lines.life.look(second)
    lines.finished(stage, "failed", None, "row 3 is bad")
    lines.life.look(500.0)
    assert said == ["toy 1: runs: first time", "toy 1: still running, 30 s", "toy 1: still running, 60 s", "toy 1: failed: row 3 is bad"]

"""What commands print."""

from __future__ import annotations

from flows.cli.output import Meter


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

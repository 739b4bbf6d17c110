"""The promotion gate's rules, each at its threshold."""

from __future__ import annotations

from typing import Any

import pytest

from dora_core.config.method import GateConfig
from dora_core.evaluation.metrics import Interval
from tasks.stages._promotion_gate import decide

GOOD = {"parts": {"all": {"accuracy": {"policy": {"value": 0.6, "low": 0.55, "high": 0.65}}}}, "kl": {"value": 3.0}}


def interval(value: float) -> Interval:
    return Interval(value, value - 0.05, value + 0.05, 100)


def wins(**rates: float) -> dict[str, Any]:
    return {name: {"win_rate": interval(rate).to_json()} for name, rate in rates.items()}


@pytest.mark.parametrize(
    ("change", "lift", "wins", "broken"),
    [
        ({}, {}, {}, []),
        ({"parts": {"all": {"accuracy": {"policy": {"low": 0.5}}}}}, {}, {}, ["accuracy"]),
        ({"kl": {"value": 50.1}}, {}, {}, ["kl"]),
        ({"kl": None}, {}, {}, []),
        ({}, {"start_all": interval(-0.01)}, {}, ["lift"]),
        ({}, {"start_golden": interval(-0.03)}, {}, ["golden_drop"]),
        ({}, {}, wins(start=0.46), []),  # the interval reaches .51: not shown to be worse
        ({}, {}, wins(start=0.44), ["win_rate"]),
        ({}, {}, wins(start=0.6, champion=0.44), ["champion_win_rate"]),
        ({}, {}, wins(chosen=0.01), []),
    ],
)
def test_rules(change: dict[str, Any], lift: dict[str, Interval], wins: dict[str, Any], broken: list[str]) -> None:
    gate = decide(GateConfig(), GOOD | change, {"start_all": interval(0.02)} | lift, wins)
    assert [rule["name"] for rule in gate["rules"] if not rule["passed"]] == broken
    assert gate["passed"] is (not broken)
    assert all(f"{rule['threshold']:g}" in rule["message"] for rule in gate["rules"])


def test_rules_that_are_switched_off_are_not_there() -> None:
    config = GateConfig(max_kl=None, min_win_rate=None, min_champion_win_rate=None)
    gate = decide(config, GOOD, {"start_all": interval(0.02)}, wins(start=0.1, champion=0.1))
    assert [rule["name"] for rule in gate["rules"]] == ["accuracy", "lift"]

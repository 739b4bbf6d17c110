"""The promotion gate's rules, each at its threshold."""

from __future__ import annotations

from typing import Any

import pytest

from dora_core.config.method import GateConfig
from dora_core.evaluation.winrate import Outcomes
from tasks.stages._preference_measures import PreferenceMeasures
from tasks.stages._promotion_gate import RULES, Evidence, decide
from tests.tasks import facts
from tests.tasks.facts import interval


def evidence(change: dict[str, Any], lift: dict[str, Any], wins: dict[str, float]) -> Evidence:
    measures = facts.measures(lift={"start_all": interval(0.02)} | lift, **change)
    return Evidence(
        PreferenceMeasures.model_validate(measures), {name: Outcomes.model_validate(facts.outcomes(rate)) for name, rate in wins.items()}
    )


def accuracy(low: float) -> dict[str, Any]:
    part = facts.measures()["parts"]["all"]
    return {"parts": {"all": part | {"accuracy": {"policy": interval(low + 0.05) | {"low": low}}}}}


@pytest.mark.parametrize(
    ("change", "lift", "wins", "broken"),
    [
        ({}, {}, {}, []),
        (accuracy(0.5), {}, {}, ["accuracy"]),
        ({"kl": interval(50.1)}, {}, {}, ["kl"]),
        ({"kl": None}, {}, {}, []),
        ({}, {"start_all": interval(-0.01)}, {}, ["lift"]),
        ({}, {"start_golden": interval(-0.03)}, {}, ["golden_drop"]),
        ({}, {}, {"start": 0.46}, []),  # the interval reaches .51: not shown to be worse
        ({}, {}, {"start": 0.44}, ["win_rate"]),
        ({}, {}, {"start": 0.6, "champion": 0.44}, ["champion_win_rate"]),
        ({}, {}, {"chosen": 0.01}, []),
    ],
)
def test_rules(change: dict[str, Any], lift: dict[str, Any], wins: dict[str, float], broken: list[str]) -> None:
    gate = decide(GateConfig(), evidence(change, lift, wins))
    assert [rule.name for rule in gate.rules if not rule.passed] == [rule.name for rule in gate.broken] == broken
    assert gate.passed is (not broken)
    assert all(f"{rule.threshold:g}" in rule.message for rule in gate.rules)


def test_rules_that_are_switched_off_are_not_there() -> None:
    config = GateConfig(max_kl=None, min_win_rate=None, min_champion_win_rate=None)
    gate = decide(config, evidence({}, {}, {"start": 0.1, "champion": 0.1}))
    assert [rule.name for rule in gate.rules] == ["accuracy", "lift"]


def test_every_rule_has_a_threshold_in_the_configuration_and_a_sentence() -> None:
    everything = evidence({}, {"start_golden": interval(0.1)}, {"start": 0.5, "champion": 0.5})
    gate = decide(GateConfig(), everything)
    assert [rule.name for rule in gate.rules] == [rule.name for rule in RULES]
    assert {rule.threshold for rule in RULES} == set(GateConfig.model_fields)
    assert [rule.message for rule in gate.rules] == [
        "lower bound of held-out accuracy above 0.5: 0.55",
        "ranking accuracy minus the start's at least 0: 0.02",
        "ranking accuracy lost on golden pairs at most 0.02: -0.1",
        "KL(policy‖start) per response, nats, at most 50: 3",
        "upper bound of the win rate against the start at least 0.5: 0.55",
        "win rate against the champion at least 0.45: 0.5",
    ]

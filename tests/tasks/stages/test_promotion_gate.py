"""The promotion gate's rules, each at its threshold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dora_core.config.method import GateConfig
from dora_core.evaluation.metrics import Interval
from tasks.stages._compare_facts import Wins
from tasks.stages._evaluate_facts import BenchmarkChange, PreferenceMeasures
from tasks.stages._promotion_gate import EVIDENCE, RULES, Evidence, decide
from tests.tasks import facts
from tests.tasks.facts import interval

INTERVAL = Interval(value=0.5, low=0.4, high=0.6, n=9)


def evidence(change: dict[str, Any], lift: dict[str, Any], wins: dict[str, float], **start: Any) -> Evidence:
    """``wins``: rate by opponent, ± .05; ``start``: changes of the comparison with the start."""
    measures = facts.measures(lift={"start_all": interval(0.02)} | lift, **change)
    found = {name: Wins.model_validate(facts.wins(rate, **(start if name == "start" else {}))) for name, rate in wins.items()}
    return Evidence(PreferenceMeasures.model_validate(measures), found)


def accuracy(low: float) -> dict[str, Any]:
    part = facts.measures()["parts"]["all"]
    return {"parts": {"all": part | {"accuracy": {"policy": interval(low + 0.05)}}}}


def labels(auc: float | None, n: int = 100) -> dict[str, Any]:
    """Labelled responses; ``auc`` None: all desirable."""
    shares = {name: {"policy": interval(0.6, n=n)} for name in ("accuracy", "accuracy_desirable")}
    areas = None if auc is None else {"policy": interval(auc, n=n)}
    counts = {"desirable": n, "undesirable": n if auc else 0, "prompts": n, "pairs": 0}
    return counts | shares | {"accuracy_undesirable": shares["accuracy"] if auc else None, "auc": areas, "auc_likelihood": areas}


@pytest.mark.parametrize(("drop", "limit", "broken"), [(0.009, 0.01, False), (0.011, 0.01, True), (0.5, None, False), (-0.2, 0.0, False)])
def test_the_benchmark_that_loses_most_decides(drop: float, limit: float | None, broken: bool) -> None:
    changes = {"arc": -drop, "toy": 0.3}
    asked = {
        t: BenchmarkChange(metric="acc", start=INTERVAL, policy=INTERVAL, change=Interval(value=c, low=c, high=c, n=9))
        for t, c in changes.items()
    }
    gate = decide(GateConfig(max_benchmark_drop=limit), replace(evidence({}, {}, {}), benchmarks=asked))
    assert [rule.name for rule in gate.broken] == (["benchmark_drop"] if broken else [])
    assert "benchmark_drop" not in {rule.name for rule in decide(GateConfig(), evidence({}, {}, {})).rules}


NO_PAIRS: dict[str, Any] = {"parts": {}, "reward_calibration": None, "margins": {"edges": [], "policy": []}}


@pytest.mark.parametrize(
    ("change", "lift", "wins", "broken"),
    [
        ({}, {}, {}, []),
        (accuracy(0.39), {}, {}, ["accuracy"]),  # the interval is .39 to .49
        ({"kl": interval(50.1)}, {}, {}, ["kl"]),
        ({"kl": None}, {}, {}, []),
        ({}, {"start_all": interval(-0.01)}, {}, ["lift"]),
        ({}, {"start_golden": interval(-0.03)}, {}, ["golden_drop"]),
        ({}, {}, {"start": 0.56}, []),
        ({}, {}, {"start": 0.44}, ["win_rate", "win_rate_equal_length"]),
        ({}, {}, {"start": 0.6, "champion": 0.51}, []),
        ({}, {}, {"start": 0.6, "champion": 0.39}, ["champion_win_rate"]),
        ({}, {}, {"chosen": 0.01}, []),
    ],
)
def test_rules(change: dict[str, Any], lift: dict[str, Any], wins: dict[str, float], broken: list[str]) -> None:
    gate = decide(GateConfig(), evidence(change, lift, wins))
    assert [rule.name for rule in gate.rules if not rule.passed] == [rule.name for rule in gate.broken] == broken
    assert gate.passed is (not broken)
    assert all(f"{rule.threshold:g}" in rule.message for rule in gate.rules)


@pytest.mark.parametrize(
    ("change", "wins", "start", "uncertain"),
    [
        (accuracy(0.5), {}, {}, ["accuracy"]),  # above, not at least: a policy that changes nothing is at .5 exactly
        (accuracy(0.42), {}, {}, ["accuracy"]),
        ({}, {"start": 0.46}, {"length_controlled": interval(0.6)}, ["win_rate"]),
        ({}, {"start": 0.55}, {}, ["win_rate", "win_rate_equal_length"]),
        ({}, {"start": 0.7}, {"length_controlled": interval(0.41, 0.23)}, ["win_rate_equal_length"]),  # it only became longer
        ({}, {"start": 0.7}, {"longer": 0.97, "near_length": None}, ["win_rate_equal_length"]),
        ({}, {"start": 0.6, "champion": 0.49}, {}, ["champion_win_rate"]),
    ],
)
def test_an_interval_that_contains_the_threshold_does_not_say(
    change: dict[str, Any], wins: dict[str, float], start: dict[str, Any], uncertain: list[str]
) -> None:
    given = evidence(change, {}, wins, **start)
    gate = decide(GateConfig(), given)
    assert (gate.passed, gate.outcome, gate.broken) == (False, "cannot tell", [])
    assert [rule.name for rule in gate.uncertain] == uncertain
    assert all("cannot tell: " in rule.message for rule in gate.uncertain)
    allowed = decide(GateConfig(when_uncertain="promote"), given)
    assert allowed.passed and allowed.outcome == "passed" and allowed.uncertain == []
    assert [rule.name for rule in allowed.rules if rule.uncertain] == uncertain


def test_a_broken_rule_outweighs_an_uncertain_one() -> None:
    given = evidence({"kl": interval(60.0)}, {}, {"start": 0.52})
    gate = decide(GateConfig(), given)
    assert gate.outcome == "failed" and [rule.reason for rule in gate.broken] == ["kl: KL(policy‖start) per response, nats, at most 50: 60"]
    assert decide(GateConfig(when_uncertain="promote"), given).outcome == "failed"


def test_a_policy_that_is_always_longer_is_not_shown_to_be_better() -> None:
    """The regression extrapolates to equal length; its interval, however narrow, is no evidence."""
    gate = decide(GateConfig(), evidence({}, {}, {"start": 0.8}, longer=0.98))
    (rule,) = gate.uncertain
    assert "longer than the start's in 98% of the pairs, so no data support a win rate at equal length" in rule.message


def test_rules_that_are_switched_off_are_not_there() -> None:
    config = GateConfig(max_kl=None, min_win_rate=None, min_win_rate_equal_length=None, min_champion_win_rate=None)
    gate = decide(config, evidence({}, {}, {"start": 0.1, "champion": 0.1}))
    assert [rule.name for rule in gate.rules] == ["accuracy", "lift"]


def test_every_rule_has_a_threshold_in_the_configuration_and_a_sentence() -> None:
    everything = evidence({"labels": labels(0.7)}, {"start_golden": interval(0.1)}, {"start": 0.6, "champion": 0.5})
    everything = replace(everything, benchmarks={"toy": BenchmarkChange(metric="acc", start=INTERVAL, policy=INTERVAL, change=INTERVAL)})
    gate = decide(GateConfig(), everything)
    assert [rule.name for rule in gate.rules] == [rule.name for rule in RULES]
    assert {rule.threshold for rule in RULES} == set(GateConfig.model_fields) - {"when_uncertain"}
    assert [rule.message for rule in gate.rules] == [
        "lower bound of held-out accuracy above 0.5: 0.55, of 0.600 [0.550, 0.650]",
        "lower bound of the AUC over held-out labels above 0.5: 0.65, of 0.700 [0.650, 0.750]",
        "ranking accuracy minus the start's at least 0: 0.02",
        "ranking accuracy lost on golden pairs at most 0.02: -0.1",
        "KL(policy‖start) per response, nats, at most 50: 3",
        "largest loss of a benchmark's score at most 0.01: -0.5",
        "lower bound of the win rate against the start above 0.5: 0.55, of 0.600 [0.550, 0.650]",
        "lower bound of the win rate against the start at equal length above 0.5: 0.55, of 0.600 [0.550, 0.650]",
        "lower bound of the win rate against the champion at least 0.45: 0.45, of 0.500 [0.450, 0.550]",
    ]


def of_labels(auc: float | None, wins: dict[str, float], **changes: Any) -> Evidence:
    """Held-out data without a pair."""
    return evidence(NO_PAIRS | {"labels": labels(auc)} | changes, {"start_all": None}, wins)


@pytest.mark.parametrize(("auc", "broken"), [(0.7, []), (0.44, ["label_auc"])])
def test_without_pairs_the_labels_decide(auc: float, broken: list[str]) -> None:
    gate = decide(GateConfig(), of_labels(auc, {}))
    assert [rule.name for rule in gate.rules] == ["label_auc", "kl"] and [rule.name for rule in gate.broken] == broken
    assert gate.unchecked["accuracy"] == gate.unchecked["lift"] == "no held-out prompt has a pair of responses"
    assert gate.unchecked["win_rate"] == "the policy was not compared with the start (compare)"
    assert "label_auc" not in gate.unchecked


def test_without_any_evidence_nothing_is_promoted() -> None:
    gate = decide(GateConfig(), of_labels(None, {}))
    assert not gate.passed and [rule.name for rule in gate.broken] == [EVIDENCE]
    assert "label_auc: all 100 labelled held-out responses have the same label" in gate.broken[0].message
    assert "win_rate: the policy was not compared with the start" in gate.broken[0].message
    off = GateConfig(max_kl=None, min_win_rate=None, min_win_rate_equal_length=None, min_champion_win_rate=None)
    assert [rule.name for rule in decide(off, of_labels(None, {})).broken] == [EVIDENCE]


def test_a_win_rate_is_evidence_where_labels_are_all_the_same() -> None:
    gate = decide(GateConfig(), of_labels(None, {"start": 0.6}))
    assert gate.passed and [rule.name for rule in gate.rules] == ["kl", "win_rate", "win_rate_equal_length"]
    assert not decide(GateConfig(), of_labels(None, {"start": 0.3})).passed


def test_pairs_or_labels_of_a_few_prompts_leave_the_decision_to_the_other() -> None:
    def mixed(pairs: float, auc: dict[str, Any], min_group: int) -> Evidence:
        return replace(evidence(accuracy(pairs) | {"labels": auc}, {}, {}), min_group=min_group)

    both = decide(GateConfig(), mixed(0.3, labels(0.4), 20))
    assert [rule.name for rule in both.broken] == ["accuracy", "label_auc"], "enough of both: each must hold"
    few_labels = decide(GateConfig(), mixed(0.6, labels(0.4, n=19), 20))
    assert few_labels.passed and "labels of 19 prompts only" in few_labels.unchecked["label_auc"]
    few_pairs = decide(GateConfig(), mixed(0.3, labels(0.7, n=200), 150))
    assert few_pairs.passed and "pairs of 100 prompts only" in few_pairs.unchecked["accuracy"] and "lift" in few_pairs.unchecked
    few_of_both = decide(GateConfig(), mixed(0.3, labels(0.4, n=19), 150))
    assert [rule.name for rule in few_of_both.broken] == ["accuracy", "label_auc"]


def test_data_of_pairs_alone_says_nothing_about_labels() -> None:
    gate = decide(GateConfig(), evidence({}, {}, {}))
    assert set(gate.unchecked) == {"golden_drop", "win_rate", "win_rate_equal_length", "champion_win_rate"}

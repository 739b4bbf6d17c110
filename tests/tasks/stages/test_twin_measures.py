"""The policy beside its twins, and the summary."""

from __future__ import annotations

from typing import Any

from tasks.stages import compare
from tasks.stages._evaluate_facts import PreferenceMeasures
from tasks.stages._twin_measures import summary, twin_measures
from tests.tasks import facts
from tests.tasks.facts import interval


def measured(**lifts: float) -> PreferenceMeasures:
    """Accuracy .55 of every twin named, and these differences to it, ± .05."""
    of_twins = {"policy": interval(0.6), "twins": {name: interval(0.55) for name in lifts}}
    part = {"accuracy": of_twins, "margin": of_twins, "ranking": of_twins | {"start": interval(0.5)}}
    lift = {"twins": {name: interval(value) for name, value in lifts.items()}}
    return PreferenceMeasures.model_validate(facts.measures(parts={"all": part}, lift=lift))


def compared(lifts: dict[str, float], **start: Any) -> compare.Facts:
    wins = {"start": facts.wins(0.64, **start)} | {name: facts.wins(0.5 + value) for name, value in lifts.items()}
    return compare.Facts.model_validate({"judge": "gold", "wins": wins, "lifts": {name: interval(v) for name, v in lifts.items()}})


def test_twins_are_in_the_order_in_which_they_are_always_shown() -> None:
    found = twin_measures(["golden_only", "erm"], measured(golden_only=0.02, erm=0.06), compared({"erm": 0.06, "golden_only": -0.02}))
    assert list(found) == ["erm", "golden_only"]
    erm = found["erm"]
    assert (erm.accuracy.value, erm.accuracy_lift.value, erm.win_rate.value, erm.win_rate_lift.value) == (0.55, 0.06, 0.56, 0.06)


def test_the_summary_says_better_worse_or_that_no_difference_is_shown() -> None:
    lifts = {"erm": 0.06, "golden_only": -0.02, "synthetic_only": -0.08}
    comparison = compared(lifts)
    text = summary(twin_measures(list(lifts), measured(**lifts), comparison), comparison)
    assert text.split("; ") == [
        "win rate against the start 0.640 [0.590, 0.690], at equal length 0.640 [0.590, 0.690]",
        "better than plain training (erm) by +0.060 [+0.010, +0.110]",
        "no difference shown to golden records alone: -0.020 [-0.070, +0.030]",
        "worse than synthetic records alone by -0.080 [-0.130, -0.030]",
    ]


def test_without_win_rates_the_accuracy_speaks() -> None:
    assert summary(twin_measures(["erm"], measured(erm=0.06), None), None) == (
        "better than plain training (erm) by +0.060 [+0.010, +0.110] in preference accuracy"
    )
    assert summary({}, None) == ""


def test_a_policy_that_is_always_longer_has_no_win_rate_at_equal_length() -> None:
    assert summary({}, compared({}, longer=0.99)) == "win rate against the start 0.640 [0.590, 0.690], no data at equal length"

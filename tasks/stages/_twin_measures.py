"""The policy beside its twins (``dora_core/config/twins.py``) on the same held-out prompts, and the summary in one sentence."""

from __future__ import annotations

from collections.abc import Iterator

from dora_core.config.twins import TWINS
from dora_core.evaluation.metrics import estimate_text
from tasks.stages._compare_facts import Facts as CompareFacts
from tasks.stages._evaluate_facts import PreferenceMeasures, TwinMeasures


def twin_measures(twins: list[str], measures: PreferenceMeasures, comparison: CompareFacts | None) -> dict[str, TwinMeasures]:
    """Measures of each twin, in the order of ``TWINS``."""
    whole = measures.parts.get("all")
    wins = {} if comparison is None else comparison.wins
    return {
        name: TwinMeasures(
            accuracy=whole.accuracy.twins[name] if whole else None,
            ranking=whole.ranking.twins[name] if whole else None,
            accuracy_lift=measures.lift.twins.get(name),
            win_rate=wins[name].win_rate if name in wins else None,
            win_rate_lift=None if comparison is None else comparison.lifts.get(name),
        )
        for name in TWINS
        if name in twins
    }


def summary(twins: dict[str, TwinMeasures], comparison: CompareFacts | None) -> str:
    """Summarise in one sentence what the policy gained: against the start, at equal length, and over every twin.

    ``"win rate against the start 0.640 [0.580, 0.700], at equal length 0.560 [0.510, 0.610]; better than plain training (erm) by +0.052
    [+0.012, +0.093]; no difference shown to golden records alone: -0.010 [-0.050, +0.030]"``; empty without win rates and twins.
    """
    return "; ".join([*_against_start(comparison), *_over_twins(twins)])


def _against_start(comparison: CompareFacts | None) -> Iterator[str]:
    start = None if comparison is None else comparison.wins.get("start")
    if start is not None:
        equal = "no data at equal length" if start.is_extrapolated else f"at equal length {estimate_text(start.length_controlled, '.3f')}"
        yield f"win rate against the start {estimate_text(start.win_rate, '.3f')}, {equal}"


def _over_twins(twins: dict[str, TwinMeasures]) -> Iterator[str]:
    for name, twin in ((name, twins[name]) for name in TWINS if name in twins):
        lift, unit = (twin.win_rate_lift, "") if twin.win_rate_lift else (twin.accuracy_lift, " in preference accuracy")
        if lift is None:
            continue
        title, by = TWINS[name].title, f"{estimate_text(lift, '+.3f')}{unit}"
        if lift.low > 0:
            yield f"better than {title} by {by}"
        elif lift.high < 0:
            yield f"worse than {title} by {by}"
        else:
            yield f"no difference shown to {title}: {by}"

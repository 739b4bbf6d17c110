"""Complete facts of finished stages, for tests that need a few of their numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tasks.runtime.stage import StageRef
from tasks.stages import calibrate, classify, guard, mix
from tasks.stages._evaluate_facts import GateResult
from tasks.stages.registry import parse_result


def interval(value: float, half: float = 0.05, n: int = 100) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def outcomes(win_rate: float) -> dict[str, Any]:
    """Of the ``compare`` stage, without ties."""
    return {"win": interval(win_rate), "tie": interval(0.0, 0.0), "lose": interval(1 - win_rate), "win_rate": interval(win_rate)}


def wins(win_rate: float, **changes: Any) -> dict[str, Any]:
    """One opponent of the ``compare`` stage."""
    counts = {"records": 150, "records_left_out": 0, "pairs": 600, "pairs_without_score": 0}
    tables = {"by_source": {}, "by_task": {}, "worst_group": None}
    lengths = {"length": {"unit": "tokens", "policy": 30.0, "opponent": 28.0}, "length_controlled": interval(win_rate)}
    lengths |= {"near_length": interval(win_rate), "longer": 0.6}
    return outcomes(win_rate) | {"sign_test_p": 0.5} | lengths | counts | tables | changes


PASSED_GATE = GateResult.model_validate(
    {
        "passed": True,
        "rules": [{"name": "accuracy", "passed": True, "value": 0.6, "threshold": 0.5, "message": "accuracy above 0.5: 0.6"}],
    }
)
FAILED_GATE = GateResult.model_validate(
    {
        "passed": False,
        "rules": [
            *PASSED_GATE.model_dump()["rules"],
            {"name": "kl", "passed": False, "value": 60.0, "threshold": 50.0, "message": "KL at most 50: 60"},
        ],
    }
)
UNDECIDED_GATE = GateResult.model_validate(
    {
        "passed": False,
        "rules": [
            *PASSED_GATE.model_dump()["rules"],
            {"name": "win_rate", "passed": False, "value": 0.4, "threshold": 0.5, "message": "win rate above 0.5: 0.4", "uncertain": True},
        ],
    }
)


def measures(**changes: Any) -> dict[str, Any]:
    """Measures of a policy that is a little better than its start."""
    by_policy = {"policy": interval(0.6)}
    part = {"accuracy": by_policy, "margin": by_policy, "ranking": by_policy | {"start": interval(0.58)}}
    curve = {"confidence": [0.6], "accuracy": [0.6], "low": [0.55], "high": [0.65], "count": [100]}
    return {
        "parts": {"all": part},
        "margins": {"edges": [0.0, 1.0], "policy": [100]},
        "reward_confidence": {"bins": [0.5], "accuracy": [0.6], "count": [100]},
        "by_source": {},
        "by_task": {},
        "worst_group": None,
        "reward_calibration": curve | {"beta": 0.1, "ece": interval(0.05)},
        "reward_correlation": {"implicit": interval(0.2), "likelihood": interval(0.3), "likelihood_start": None},
        "lift": {"start_all": interval(0.02)},
        "kl": interval(3.0),
    } | changes


def evaluation(gate: GateResult = PASSED_GATE, **changes: Any) -> dict[str, Any]:
    """Of the ``evaluate`` stage."""
    return measures(**changes) | {"gate": gate.model_dump()}


def evaluated(ranking: dict[str, tuple[float, int]], kl: float | None = 1.0) -> dict[str, Any]:
    """Of the ``evaluate`` stage, with ``{source: (ranking accuracy, held-out prompts)}``."""
    by_source = {
        name: {"accuracy": interval(0.5, n=n), "accuracy_policy": 0.5, "ranking_policy": value, "ranking_start": 0.5, "n": n}
        for name, (value, n) in ranking.items()
    }
    return evaluation(kl=None if kl is None else interval(kl, 1.0, 64), by_source=by_source)


def classifier(ref: StageRef, sources: Sequence[str], **changes: Any) -> dict[str, Any]:
    """Of the ``classify`` stage ``ref``, which tells all ``sources`` apart from golden."""
    aucs = {"auc": 0.8, "auc_low": 0.75, "auc_high": 0.85, "auc_family_low": 0.74, "auc_family_high": 0.86, "told_apart": True}
    cues = {"within_prompt_auc": 0.8, "prompt_only_auc": 0.5, "length_only_auc": 0.55}
    quality = {"log_loss": 0.5, "ece": 0.02, "temperature": 1.0, "reliability": {"confidence": [0.5], "accuracy": [0.5], "count": [100]}}
    facts = {
        "classifier": ref,
        "reused": False,
        "reason": "no earlier run to compare with",
        "seconds_fit": 30.0,
        "sources": {name: {"n": 100, "gamma": 1.0} | aucs | cues | quality for name in sources},
        "unlabelled": None,
        "deep_folds": 3,
        "curve": [],
        "warnings": [],
    }
    return classify.Facts.model_validate(facts | changes).dump()


def mixture(**changes: Any) -> dict[str, Any]:
    """Of the ``mix`` stage."""
    facts = {"round": 2, "given": 1, "lists": 1, "no_list": {}, "golden_share": 0.5, "sources": {"human": 2, "policy-r1": 2}}
    return mix.Facts.model_validate(facts | changes).dump()


def calibration(**changes: Any) -> dict[str, Any]:
    """Of the ``calibrate`` stage."""
    facts = {
        "scored_rows": 400,
        "reused_rows": 0,
        "rows_per_second": 900.0,
        "padding_waste": 0.1,
        "form": "mixture",
        "h": {},
        "histogram": {"edges": [0.0, 1.0, 2.0], "counts": {"human": [100, 100], "bot": [150, 50]}},
        "ess": 0.6,
        "ess_by_form": {"mixture": 0.6, "paper": 0.5, "released": 0.4},
        "capped_fraction": 0.01,
        "rows": {"in": 400, "scored": 400, "unscored": 0, "clipped": 0, "capped": 4},
        "nan": 0,
        "tau": 1.0,
        "shares": {"golden": 0.5, "bot": 0.5},
        "alpha": {"value": 0.5, "low": 0.5, "high": 0.5, "estimated": False},
        "no_shift": False,
        "warnings": [],
    }
    return calibrate.Facts.model_validate(facts | changes).dump()


def guarded(rules: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Of the ``guard`` stage; stopped by the broken ones among ``rules``."""
    broken = "; ".join(rule["message"] for rule in rules if rule["passed"] is False)
    stop = {"message": f"stopped: {broken}", "hint": "raise the temperature"} if broken else None
    shown = [{"value": None, "threshold": None} | rule for rule in rules]
    facts = {"round": 1, "passed": not broken, "rules": shown, "stop": stop, "diversity": None}
    return guard.Facts.model_validate(facts | changes).dump()


def assert_round_trip(result: dict[str, Any]) -> None:
    """Parsing and dumping the facts of a ``result.json`` gives the same JSON, to the byte."""
    dumped = parse_result(result).facts.dump()
    assert json.dumps(dumped, sort_keys=True) == json.dumps(result["facts"], sort_keys=True), result["stage"]

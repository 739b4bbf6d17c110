"""The gate: when a policy may be promoted. Every rule that has evidence is checked, with its figure, its threshold and a sentence.

Left out: a rule for the worst source or task. The lowest of many estimates is low by chance, so a threshold on it refuses policies for
having many groups; groups are shown with their intervals instead, and a self-training round is guarded by its change
(``tasks/stages/guard.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dora_core.config.method import GateConfig

if TYPE_CHECKING:
    from dora_core.evaluation.metrics import Interval


def decide(gate: GateConfig, facts: dict[str, Any], lift: dict[str, Interval], wins: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """``{passed, rules}``; the gate passes when all its rules do.

    Args:
        facts: ``parts`` and ``kl`` of the evaluation.
        lift: paired differences against the start, ``start_all`` and, where there are such pairs, ``start_golden``.
        wins: of the ``compare`` stage, empty without one. Against the start the interval's upper bound counts: a policy that is shown to
            be worse is refused, one of which too few responses were judged is not. The champion is to be replaced by something about
            as good or better, so there the estimate itself counts.
    """
    accuracy, ranking = facts["parts"]["all"]["accuracy"]["policy"]["low"], lift["start_all"].value
    rules = [
        _rule("accuracy", accuracy, gate.min_accuracy, accuracy > gate.min_accuracy, "lower bound of held-out accuracy above"),
        _rule("lift", ranking, gate.min_lift, ranking >= gate.min_lift, "ranking accuracy minus the start's at least"),
    ]
    if "start_golden" in lift:
        drop = -lift["start_golden"].value
        rules.append(
            _rule("golden_drop", drop, gate.max_golden_drop, drop <= gate.max_golden_drop, "ranking accuracy lost on golden pairs at most")
        )
    if facts["kl"] is not None and gate.max_kl is not None:
        kl = facts["kl"]["value"]
        rules.append(_rule("kl", kl, gate.max_kl, kl <= gate.max_kl, "KL(policy‖start) per response, nats, at most"))
    if "start" in wins and gate.min_win_rate is not None:
        high = wins["start"]["win_rate"]["high"]
        meaning = "upper bound of the win rate against the start at least"
        rules.append(_rule("win_rate", high, gate.min_win_rate, high >= gate.min_win_rate, meaning))
    if "champion" in wins and gate.min_champion_win_rate is not None:
        rate = wins["champion"]["win_rate"]["value"]
        meaning = "win rate against the champion at least"
        rules.append(_rule("champion_win_rate", rate, gate.min_champion_win_rate, rate >= gate.min_champion_win_rate, meaning))
    return {"passed": all(r["passed"] for r in rules), "rules": rules}


def _rule(name: str, value: float, threshold: float, passed: bool, meaning: str) -> dict[str, Any]:
    message = f"{meaning} {threshold:g}: {value:.4g}"
    return {"name": name, "passed": bool(passed), "value": float(value), "threshold": threshold, "message": message}

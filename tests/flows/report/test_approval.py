"""Evidence and decision of a promotion, as a person reads them."""

from __future__ import annotations

from flows.report.approval import decision_lines, evidence_table
from tasks.stages import compare, evaluate, promote
from tasks.stages._evaluate_facts import GateResult
from tests.tasks import facts
from tests.tasks.facts import interval

ACCURACY = {"value": 0.62, "low": 0.58, "high": 0.66, "n": 128}
GATE = {
    "passed": False,
    "rules": [
        {
            "name": "accuracy",
            "passed": True,
            "value": 0.58,
            "threshold": 0.5,
            "message": "lower bound of held-out accuracy above 0.5: 0.58",
        },
        {
            "name": "kl",
            "passed": False,
            "value": 3.2,
            "threshold": 3.0,
            "message": "KL(policy‖start) per response, nats, at most 3: 3.2",
        },
    ],
}
WINS = facts.wins(0.6, win=interval(0.55), worst_group=ACCURACY | {"by": "task", "name": "ma|th"}) | {"win_rate": ACCURACY}


def evaluation(kl: dict[str, float] | None) -> evaluate.Facts:
    part = {"accuracy": {"policy": ACCURACY}, "margin": {"policy": ACCURACY}, "ranking": {"policy": ACCURACY}}
    return evaluate.Facts.model_validate(facts.evaluation(GateResult.model_validate(GATE), parts={"all": part}, kl=kl))


def test_the_evaluation_has_wins_intervals_worst_group_and_every_rule() -> None:
    comparison = compare.Facts.model_validate({"judge": "reward_model", "wins": {"champion": WINS}})
    text = evidence_table(evaluation({"value": 3.2, "low": 2.9, "high": 3.5, "n": 64}), comparison)
    assert "0.620 [0.580, 0.660]" in text and "task ma\\|th" in text and "55" in text
    assert "accuracy **0.620 [0.580, 0.660]**" in text and "**3.200 [2.900, 3.500]** nats" in text
    assert text.count("| met |") == 1 and text.count("| **not met** |") == 1


def test_without_a_comparison_and_a_kl_that_is_said() -> None:
    text = evidence_table(evaluation(None), None)
    assert "No win rates" in text and "nats per response" not in text.split("| rule")[0]


def test_an_evaluation_by_labels_has_their_auc_and_the_rules_without_evidence() -> None:
    measured = {"policy": ACCURACY}
    counts = {"desirable": 90, "undesirable": 38, "prompts": 128, "pairs": 0, "accuracy_desirable": None, "accuracy_undesirable": None}
    labels = counts | {"auc": measured, "accuracy": measured, "auc_likelihood": None}
    gate = GATE | {"unchecked": {"accuracy": "no held-out prompt has a pair of responses"}}
    changes = {"parts": {}, "reward_calibration": None, "lift": {}, "labels": labels}
    text = evidence_table(evaluate.Facts.model_validate(facts.evaluation(GateResult.model_validate(gate), **changes)), None)
    assert "AUC over held-out labels **0.620 [0.580, 0.660]**" in text and "preference accuracy" not in text
    assert "| no evidence | accuracy: no held-out prompt has a pair of responses |" in text


def test_a_decision_names_who_why_when_and_digests() -> None:
    audit = {"action": "rolled_back", "when": "2026-01-31T12:00:00+00:00", "who": "a_b", "why": "x", "policy": "p" * 64, "config": "c" * 64}
    written = {
        "decision": "refused",
        "model_name": "demo",
        "version": "2",
        "aliases": {"champion": "1"},
        "reasons": ["rejected by *ann*"],
    }
    assert decision_lines(promote.Facts.model_validate(written | {"audit": audit})) == [
        "**refused**: model `demo` version 2; aliases: champion → 1",
        "rejected by \\*ann\\*",
        "audit: rolled back 2026-01-31T12:00:00+00:00 by a\\_b; policy `pppppppppppp`, config `cccccccccccc`",
    ]
    promotion = promote.Facts.model_validate(written | {"audit": None})
    assert len(decision_lines(promotion)) == 2
    rule = {"name": "kl", "passed": False, "value": 1.0, "threshold": 0.5, "message": "at most 0.5: 1"}
    promotion = promote.Facts.model_validate(written | {"audit": None, "reasons": ["kl: at most 0.5: 1"]})
    shown_in_the_table = GateResult.model_validate({"passed": False, "rules": [rule]})
    assert len(decision_lines(promotion, shown_in_the_table)) == 1

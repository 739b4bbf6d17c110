"""What a person is shown who decides about a promotion."""

from __future__ import annotations

from flows.report.approval import decision_lines, evidence_table

INTERVAL = {"value": 0.62, "low": 0.58, "high": 0.66, "n": 128}
EVALUATION = {
    "parts": {"all": {"accuracy": {"policy": INTERVAL}}},
    "kl": {"value": 3.2, "low": 2.9, "high": 3.5},
    "gate": {
        "passed": False,
        "rules": [
            {"name": "accuracy", "passed": True, "message": "lower bound of held-out accuracy above 0.5: 0.58"},
            {"name": "kl", "passed": False, "message": "KL(policy‖start) per response, nats, at most 3: 3.2"},
        ],
    },
}
WINS = {
    "win": {"value": 0.55},
    "tie": {"value": 0.1},
    "lose": {"value": 0.35},
    "win_rate": INTERVAL,
    "length_controlled": INTERVAL,
    "sign_test_p": 0.01,
    "worst_group": INTERVAL | {"by": "task", "name": "ma|th"},
}


def test_the_evaluation_has_wins_intervals_worst_group_and_every_rule() -> None:
    text = evidence_table(EVALUATION, {"judge": "reward_model", "wins": {"champion": WINS}})
    assert "0.620 [0.580, 0.660]" in text and "task ma\\|th" in text and "55" in text
    assert "accuracy **0.620 [0.580, 0.660]**" in text and "**3.200 [2.900, 3.500]** nats" in text
    assert text.count("| met |") == 1 and text.count("| **not met** |") == 1


def test_without_a_comparison_and_a_kl_that_is_said() -> None:
    text = evidence_table(EVALUATION | {"kl": None}, None)
    assert "No win rates" in text and "nats per response" not in text.split("| rule")[0]


def test_a_decision_names_who_why_when_and_digests() -> None:
    audit = {"action": "rolled_back", "when": "2026-01-31T12:00:00+00:00", "who": "a_b", "why": "x", "policy": "p" * 64, "config": "c" * 64}
    promotion = {
        "decision": "refused",
        "model_name": "demo",
        "version": "2",
        "aliases": {"champion": "1"},
        "reasons": ["rejected by *ann*"],
    }
    assert decision_lines(promotion | {"audit": audit}) == [
        "**refused**: model `demo` version 2; aliases: champion → 1",
        "rejected by \\*ann\\*",
        "audit: rolled back 2026-01-31T12:00:00+00:00 by a\\_b; policy `pppppppppppp`, config `cccccccccccc`",
    ]
    assert len(decision_lines(promotion | {"audit": None})) == 2
    shown_in_the_table = {"rules": [{"message": "rejected by *ann*"}]}
    assert len(decision_lines(promotion | {"audit": None}, shown_in_the_table)) == 1

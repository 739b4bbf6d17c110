"""Further generated schemas of published preference data, registered beside those of ``cases.py``."""

from __future__ import annotations

from typing import Any

from tests.dora_core.data.cases import (
    ROWS,
    SYSTEM,
    Case,
    Truth,
    _labelled,
    _pairs,
    _unpaired,
    assistant,
    best,
    case,
    message,
    question,
    system,
    user,
    worst,
)


def talk(i: int) -> dict[str, Any]:
    """Whole conversations as chosen and rejected."""
    return {"chosen": [user(question(i)), assistant(best(i))], "rejected": [user(question(i)), assistant(worst(i))]}


def texts(i: int) -> dict[str, str]:
    return {"chosen": best(i), "rejected": worst(i)}


@case
def truthy_dpo() -> Case:
    def row(i: int) -> dict[str, Any]:
        return {"id": f"t{i}", "source": "truthy_dpo", "system": SYSTEM, "prompt": question(i), **texts(i)}

    return _pairs(row, lambda i: [system(), user(question(i))], name="truthy_dpo", preset="orca")


@case
def orpo_mix() -> Case:
    return _pairs(
        lambda i: {"source": "Airoboros", **talk(i), "prompt": question(i), "question": question(i)}, name="orpo_mix", preset="orpo_mix"
    )


@case
def ultrainteract() -> Case:
    """Two turns before the responses; one tree has one id in all its rows."""
    turns = [("user", "Start."), ("assistant", "Which one?")]

    def row(i: int) -> dict[str, Any]:
        lead = [message(role, text, "from", "value") for role, text in (*turns, ("user", question(i)))]
        return {"task": "Math_CoT", "dataset": "gsm8k", "trajectory": lead, **texts(i), "id": "tree", "parent_id": None}

    prompt = [message(*turn) for turn in turns]
    truth: dict[int, Truth | str] = {
        i: Truth([*prompt, user(question(i))], {best(i): 1.0, worst(i): 0.0}, task="Math_CoT") for i in range(ROWS)
    }
    return Case("ultrainteract", [row(i) for i in range(ROWS)], truth, preset="ultrainteract")


@case
def helpsteer3_edits() -> Case:
    def row(i: int) -> dict[str, Any]:
        edits = {"good_edited_response": best(i), "bad_edited_response": worst(i)}
        return {
            "domain": "code",
            "language": "python",
            "context": [user(question(i))],
            "original_response": "x",
            **edits,
            "feedback": ["f"],
        }

    truth: dict[int, Truth | str] = {i: Truth([user(question(i))], {best(i): 1.0, worst(i): 0.0}, task="code") for i in range(ROWS)}
    return Case("helpsteer3_edits", [row(i) for i in range(ROWS)], truth, preset="helpsteer3_edits")


@case
def distilabel_math() -> Case:
    def row(i: int) -> dict[str, Any]:
        answers = {"chosen_response": best(i), "rejected_response": worst(i), "chosen_rating": 5.0, "rejected_rating": 3.5}
        return {"metadata": "{}", "instruction": question(i), **answers, "difference": 1.5}

    return _pairs(row, name="distilabel_math", preset="argilla")


@case
def openrlhf_mixture() -> Case:
    """A source of the prompt beside scores."""
    return _pairs(lambda i: {**talk(i), "source": "hh", "chosen_score": 4, "rejected_score": 1}, name="openrlhf_mixture", preset="rlhflow")


@case
def beavertails() -> Case:
    def row(i: int, text: str, good: bool) -> dict[str, Any]:
        return {"prompt": question(i), "response": text, "category": {"violence": not good}, "is_safe": good}

    return _unpaired("beavertails", row, preset="beavertails")


@case
def prometheus() -> Case:
    def row(i: int, a: str, b: str, a_wins: bool) -> dict[str, Any]:
        given = {"orig_criteria": "c", "orig_instruction": question(i), "orig_response_A": a, "orig_response_B": b}
        scores = {"orig_score_A": "5" if a_wins else "2", "orig_score_B": "2" if a_wins else "5"}
        return {**given, **scores, "orig_preference": "A" if a_wins else "B", "instruction": "Judge this.", "input": "", "output": "o"}

    return _labelled("prometheus", row, preset="prometheus")


@case
def ppe_human_preference() -> Case:
    def row(i: int, a: str, b: str, a_wins: bool) -> dict[str, Any]:
        winner = "tie (bothbad)" if i % 5 == 0 else "model_a" if a_wins else "model_b"
        models = {"model_a": "x", "model_b": "y", "winner": winner, "language": "English"}
        return {"question_id": f"q{i}", "prompt": question(i), "response_1": a, "response_2": b, **models}

    return _labelled("ppe_human_preference", row, lambda i: i % 5 == 0, preset="arena")

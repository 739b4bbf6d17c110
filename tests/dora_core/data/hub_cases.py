"""Further generated schemas of published preference data, registered beside those of ``cases.py``."""

from __future__ import annotations

from typing import Any

from tests.dora_core.data.cases import (
    CASES,
    ROWS,
    SYSTEM,
    Case,
    Truth,
    _labelled,
    _pairs,
    _unpaired,
    assistant,
    best,
    burnt,
    case,
    message,
    question,
    second,
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


@case
def reward_bench_2() -> Case:
    """Lists of preferred and of rejected responses."""

    def row(i: int) -> dict[str, Any]:
        chosen, rejected = ([best(i), second(i)], [worst(i), burnt(i)]) if i % 2 else ([best(i)], [worst(i), burnt(i), second(i)])
        counts = {"num_correct": len(chosen), "num_incorrect": len(rejected), "total_completions": 4}
        return {
            "id": f"{i}",
            "prompt": question(i),
            "chosen": chosen,
            "rejected": rejected,
            "subset": "Ties",
            "models": ["m"] * 4,
            **counts,
        }

    truth: dict[int, Truth | str] = {
        i: Truth([user(question(i))], {best(i): 1.0, second(i): float(i % 2), worst(i): 0.0, burnt(i): 0.0}, task="Ties")
        for i in range(ROWS)
    }
    return Case("reward_bench_2", [row(i) for i in range(ROWS)], truth, preset="reward_bench")


@case
def oasst_with_deleted_messages() -> Case:
    """A deleted answer with the worst rank, and a question below a deleted answer: neither is read."""
    base = CASES["oasst"]()
    (first, *_) = [row for row in base.rows if row["role"] == "prompter" and row["message_id"] in {r["parent_id"] for r in base.rows}]
    gone = {**next(r for r in base.rows if r["role"] == "assistant"), "parent_id": first["message_id"], "deleted": True, "rank": 9}
    below = [
        {**gone, "message_id": "gone", "text": "This was deleted."},
        {**gone, "message_id": "q", "parent_id": "gone", "role": "prompter", "text": "Why?", "deleted": False, "rank": None},
        *({**gone, "message_id": f"a{k}", "parent_id": "q", "text": f"Answer {k}.", "deleted": False, "rank": k} for k in range(2)),
    ]
    return Case("oasst_with_deleted_messages", [*base.rows, *below], base.truth, preset="oasst")


@case
def label_studio_with_cancelled_annotations() -> Case:
    """A cancelled annotation says the opposite; a row with no other has no label."""
    base = CASES["label_studio"]()
    rows, truth = [], dict(base.truth)
    for i, row in enumerate(base.rows):
        wrong = {"completed_by": 9, "was_cancelled": True, "result": [{"value": {"selected": "left"}}]}
        opposite = {**wrong, "result": [{"value": {"selected": "right"}}]}
        sound = [{**one, "was_cancelled": False} for one in row["annotations"]]
        kept = [] if i == 1 else sound
        rows.append({**row, "annotations": [*kept, wrong, opposite]})
        found = truth[i]
        if i == 1 and isinstance(found, Truth):
            truth[i] = Truth(found.prompt, dict.fromkeys(found.answers))
    return Case("label_studio_with_cancelled_annotations", rows, truth, preset="label_studio")

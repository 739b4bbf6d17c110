"""Generated copies of the schemas in which preference data is published, with the truth about each row.

"Wipe …" is the best answer, then "Rinse …", "No idea …" and "Burn …", so that an inverted preference can be seen. A case says for every
row what a right reading is: the prompt, and the responses with numbers whose order is the preference (equal: a tie, None: not measured),
or the reason of its refusal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

ITEMS = (
    "wool scarf",
    "linen shirt",
    "leather boot",
    "rain coat",
    "felt hat",
    "cotton sheet",
    "silk tie",
    "canvas tent",
    "tea kettle",
    "oak table",
)
SYSTEM = "You are a patient shop assistant."
ROWS = 12


def thing(i: int) -> str:
    return f"{ITEMS[i % len(ITEMS)]} number {i}"


def question(i: int) -> str:
    return f"How do I clean a {thing(i)}?"


def best(i: int) -> str:
    return f"Wipe the {thing(i)} with a damp cloth, then let it dry."


def second(i: int) -> str:
    return f"Rinse the {thing(i)} quickly and hope for the best."


def worst(i: int) -> str:
    return f"No idea, ask the shop about the {thing(i)}."


def burnt(i: int) -> str:
    return f"Burn the {thing(i)} and buy a new one."


def message(role: str, content: Any, role_key: str = "role", content_key: str = "content") -> dict[str, Any]:
    return {role_key: role, content_key: content}


def user(text: str) -> dict[str, str]:
    return message("user", text)


def assistant(text: str) -> dict[str, str]:
    return message("assistant", text)


def system(text: str = SYSTEM) -> dict[str, str]:
    return message("system", text)


@dataclass(frozen=True)
class Truth:
    """What one record must say. ``answers``: text → number, larger is better; equal is a tie, None is not measured."""

    prompt: list[dict[str, str]]
    answers: dict[str, float | None]
    sources: dict[str, str] | None = None
    split: str | None = None
    task: str | None = None


@dataclass(frozen=True)
class Case:
    """Rows of one schema; ``truth``: position of the row → record or reason of its refusal; rows that are not there yield nothing."""

    name: str
    rows: list[dict[str, Any]]
    truth: dict[int, Truth | str]
    preset: str | None = None
    adapter: dict[str, Any] = field(default_factory=dict)
    golden: bool = False

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(key for row in self.rows for key in row))


CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__] = make
    return make


def _pairs(make_row: Callable[[int], dict[str, Any]], prompt: Callable[[int], list[dict[str, str]]] | None = None, **facts: Any) -> Case:
    """A case in which every row prefers the best answer to the worst one."""
    prompts = prompt or (lambda i: [user(question(i))])
    truth: dict[int, Truth | str] = {i: Truth(prompts(i), {best(i): 1.0, worst(i): 0.0}) for i in range(ROWS)}
    return Case(rows=[make_row(i) for i in range(ROWS)], truth=truth, **facts)


def _sides(i: int) -> tuple[str, str, bool]:
    """Answers A and B, and whether A is the better one: half of the rows each way."""
    return (best(i), worst(i), True) if i % 2 else (worst(i), best(i), False)


def hh_text(i: int, answer: str | None) -> str:
    text = f"\n\nHuman: {question(i)}\n\nAssistant: Is it dirty?\n\nHuman: Yes.\n\nAssistant:"
    return text if answer is None else f"{text} {answer}"


def hh_prompt(i: int) -> list[dict[str, str]]:
    return [user(question(i)), assistant("Is it dirty?"), user("Yes.")]


# ------------------------------------------------------------------------------------------------------- pairs


@case
def hh() -> Case:
    return _pairs(lambda i: {"chosen": hh_text(i, best(i)), "rejected": hh_text(i, worst(i))}, hh_prompt, name="hh", preset="hh")


@case
def binarized() -> Case:
    rows, truth = [], {}
    for i in range(ROWS):
        high, low = ((8.5, 4.0), (7.0, 7.0), (3.0, 9.0), (8.0, None))[i % 4]
        chosen = [user(question(i)), assistant(best(i))]
        rejected = [user(question(i)), assistant(worst(i))]
        scores = {"score_chosen": high, "score_rejected": low}
        rows.append({"prompt": question(i), "prompt_id": f"p{i}", "chosen": chosen, "rejected": rejected, "messages": chosen, **scores})
        if low is None:
            high, low = 1.0, 0.0
        truth[i] = "score_contradicts_label" if high < low else Truth([user(question(i))], {best(i): high, worst(i): low})
    return Case("binarized", rows, truth, preset="binarized")


@case
def binarized_scores_decide() -> Case:
    base = binarized()
    truth = dict(base.truth)
    for i, row in enumerate(base.rows):
        if truth[i] == "score_contradicts_label":
            truth[i] = Truth([user(question(i))], {best(i): row["score_chosen"], worst(i): row["score_rejected"]})
    scores = {"scores": [{"chosen": "score_chosen", "rejected": "score_rejected"}], "contradiction": "scores"}
    return Case("binarized_scores_decide", base.rows, truth, preset="binarized", adapter={"label": scores})


@case
def orca() -> Case:
    def prompt(i: int) -> list[dict[str, str]]:
        return [user(question(i))] if i % 3 == 0 else [system(), user(question(i))]

    def row(i: int) -> dict[str, Any]:
        return {
            "system": ("" if i % 2 else None) if i % 3 == 0 else SYSTEM,
            "question": question(i),
            "chosen": best(i),
            "rejected": worst(i),
        }

    return _pairs(row, prompt, name="orca", preset="orca")


@case
def sharegpt() -> Case:
    def row(i: int) -> dict[str, Any]:
        turns = [message("human", question(i), "from", "value")]
        return {
            "conversations": turns,
            "chosen": message("gpt", best(i), "from", "value"),
            "rejected": message("gpt", worst(i), "from", "value"),
        }

    return _pairs(row, name="sharegpt", preset="sharegpt")


@case
def trl_explicit() -> Case:
    def row(i: int) -> dict[str, Any]:
        return {"prompt": [system(), user(question(i))], "chosen": [assistant(best(i))], "rejected": [assistant(worst(i))]}

    return _pairs(row, lambda i: [system(), user(question(i))], name="trl_explicit", preset="trl")


@case
def trl_implicit() -> Case:
    def row(i: int) -> dict[str, Any]:
        lead = [system(), user(question(i))]
        return {"chosen": [*lead, assistant(best(i))], "rejected": [*lead, assistant(worst(i))]}

    return _pairs(row, lambda i: [system(), user(question(i))], name="trl_implicit", preset="trl")


@case
def trl_implicit_strings() -> Case:
    def row(i: int) -> dict[str, Any]:
        return {"chosen": f"Q: {question(i)}\nA: {best(i)}", "rejected": f"Q: {question(i)}\nA: {worst(i)}"}

    return _pairs(row, lambda i: [user(f"Q: {question(i)}\nA:")], name="trl_implicit_strings", preset="trl")


@case
def implicit_strings_without_a_marker() -> Case:
    rows = [{"chosen": f"{question(i)} {best(i)}", "rejected": f"{question(i)} {worst(i)}"} for i in range(ROWS)]
    return Case("implicit_strings_without_a_marker", rows, dict.fromkeys(range(ROWS), "no_prompt_boundary"), preset="trl")


@case
def openai_preference() -> Case:
    def row(i: int) -> dict[str, Any]:
        given = {"messages": [system(), user(question(i))], "tools": [], "parallel_tool_calls": True}
        return {"input": given, "preferred_output": [assistant(best(i))], "non_preferred_output": [assistant(worst(i))]}

    return _pairs(row, lambda i: [system(), user(question(i))], name="openai_preference", preset="openai_preference")


@case
def tulu3() -> Case:
    def row(i: int) -> dict[str, Any]:
        lead = user(question(i))
        pair = {"chosen": [lead, assistant(best(i))], "rejected": [lead, assistant(worst(i))]}
        return {"id": f"t{i}", "prompt": question(i), **pair, "source": "wildchat"}

    return _pairs(row, name="tulu3", preset="tulu3")


@case
def argilla() -> Case:
    def row(i: int) -> dict[str, Any]:
        lead = user(question(i))
        chosen = {"chosen": [lead, assistant(best(i))], "chosen-rating": 4.75, "chosen-model": "gpt-4"}
        rejected = {"rejected": [lead, assistant(worst(i))], "rejected-rating": 2.5, "rejected-model": "alpaca-7b"}
        return {"source": "sharegpt", "prompt": question(i), **chosen, **rejected}

    truth: dict[int, Truth | str] = {
        i: Truth([user(question(i))], {best(i): 4.75, worst(i): 2.5}, {best(i): "gpt-4", worst(i): "alpaca-7b"}) for i in range(ROWS)
    }
    return Case("argilla", [row(i) for i in range(ROWS)], truth, preset="argilla")


@case
def skywork() -> Case:
    def row(i: int) -> dict[str, Any]:
        lead = user(question(i))
        return {"chosen": [lead, assistant(best(i))], "rejected": [lead, assistant(worst(i))], "source": "offsetbias"}

    return _pairs(row, name="skywork", preset="skywork")


@case
def ms_swift() -> Case:
    def row(i: int) -> dict[str, Any]:
        return {"messages": [system(), user(question(i)), assistant(best(i))], "rejected_response": worst(i)}

    return _pairs(row, lambda i: [system(), user(question(i))], name="ms_swift", preset="ms_swift")


@case
def axolotl() -> Case:
    def row(i: int) -> dict[str, Any]:
        return {"messages": [user(question(i))], "chosen": assistant(best(i)), "rejected": assistant(worst(i))}

    return _pairs(row, name="axolotl", preset="axolotl")


@case
def axolotl_icr() -> Case:
    def row(i: int) -> dict[str, Any]:
        return {"system": SYSTEM, "input": question(i), "chosen": best(i), "rejected": worst(i)}

    return _pairs(row, lambda i: [system(), user(question(i))], name="axolotl_icr", preset="axolotl")


@case
def alpaca_pref_llama_factory() -> Case:
    def row(i: int) -> dict[str, Any]:
        history = [["Hello.", "Good day."]] if i % 2 else []
        given = {"instruction": "Answer.", "input": question(i) if i % 3 else "", "system": SYSTEM, "history": history}
        return {**given, "chosen": best(i), "rejected": worst(i)}

    def prompt(i: int) -> list[dict[str, str]]:
        turns = [user("Hello."), assistant("Good day.")] if i % 2 else []
        return [system(), *turns, user(f"Answer.\n\n{question(i)}" if i % 3 else "Answer.")]

    return _pairs(row, prompt, name="alpaca_pref_llama_factory", preset="alpaca_pref")


@case
def reward_bench() -> Case:
    def row(i: int) -> dict[str, Any]:
        chosen = {"chosen": best(i), "chosen_model": "human"}
        return {"prompt": question(i), **chosen, "rejected": worst(i), "rejected_model": "llama", "subset": f"s{i % 2}", "id": i}

    truth: dict[int, Truth | str] = {
        i: Truth([user(question(i))], {best(i): 1, worst(i): 0}, {best(i): "human", worst(i): "llama"}, task=f"s{i % 2}")
        for i in range(ROWS)
    }
    return Case("reward_bench", [row(i) for i in range(ROWS)], truth, preset="reward_bench")


@case
def stack_exchange() -> Case:
    def row(i: int) -> dict[str, Any]:
        return {
            "qid": i // 2,
            "question": question(i),
            "date": "2020/01/01",
            "metadata": ["x"],
            "response_j": best(i),
            "response_k": worst(i),
        }

    return _pairs(row, name="stack_exchange", preset="stack_exchange")


@case
def other_roles() -> Case:
    dialects = (("developer", "user", "assistant"), ("system", "human", "gpt"), ("SYSTEM", "User", "model"), ("system", "prompter", "Bot"))

    def row(i: int) -> dict[str, Any]:
        names = dialects[i % len(dialects)]
        lead = [message(names[0], SYSTEM), message(names[1], question(i))]
        return {"chosen": [*lead, message(names[2], best(i))], "rejected": [*lead, message(names[2], worst(i))]}

    return _pairs(row, lambda i: [system(), user(question(i))], name="other_roles", preset="trl")


@case
def content_parts() -> Case:
    def parts(text: str) -> list[dict[str, Any]]:
        half = len(text) // 2
        return [{"type": "text", "text": text[:half], "image": None}, {"type": "text", "text": text[half:]}]

    def row(i: int) -> dict[str, Any]:
        prompt = [message("system", parts(SYSTEM)), message("user", parts(question(i)))]
        if i % 4 == 0:
            prompt[1]["content"].append({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}})
        return {"prompt": prompt, "chosen": [message("assistant", parts(best(i)))], "rejected": [message("assistant", parts(worst(i)))]}

    base = _pairs(row, lambda i: [system(), user(question(i))], name="content_parts", preset="trl")
    return Case("content_parts", base.rows, {i: "media" if i % 4 == 0 else truth for i, truth in base.truth.items()}, preset="trl")


@case
def messages_as_text() -> Case:
    def written(messages: list[dict[str, str]], i: int) -> str:
        if i % 3 == 0:
            return json.dumps(messages)
        return repr(messages) if i % 3 == 1 else repr(messages).replace("}, {", "}\n {")

    def row(i: int) -> dict[str, Any]:
        lead = user(question(i))
        chosen, rejected = ([lead, assistant(text)] for text in (f'{best(i)} It\'s "easy".', worst(i)))
        return {"prompt": question(i), "chosen": written(chosen, i), "rejected": written(rejected, i)}

    base = _pairs(row, name="messages_as_text", preset="trl")
    truth: dict[int, Truth | str] = {i: Truth([user(question(i))], {f'{best(i)} It\'s "easy".': 1.0, worst(i): 0.0}) for i in range(ROWS)}
    return Case("messages_as_text", base.rows, truth, preset="trl")


@case
def json_by_intent() -> Case:
    def row(i: int) -> dict[str, Any]:
        return {"prompt": question(i), "chosen": json.dumps({"answer": best(i)}), "rejected": json.dumps([worst(i)])}

    truth: dict[int, Truth | str] = {
        i: Truth([user(question(i))], {json.dumps({"answer": best(i)}): 1.0, json.dumps([worst(i)]): 0.0}) for i in range(ROWS)
    }
    return Case("json_by_intent", [row(i) for i in range(ROWS)], truth, preset="trl")


def _templated(i: int, answer: str | None) -> str:
    style = i % 3
    if style == 0:
        text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question(i)}<|im_end|>\n<|im_start|>assistant\n"
        return text if answer is None else f"{answer}<|im_end|>\n"
    if style == 1:
        text = f"<s>[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n{question(i)} [/INST]"
        return text if answer is None else f"{answer}</s>"
    text = (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{question(i)}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    return text if answer is None else f"{answer}<|eot_id|>"


@case
def templated_refused() -> Case:
    rows = [{"prompt": _templated(i, None), "chosen": _templated(i, best(i)), "rejected": _templated(i, worst(i))} for i in range(ROWS)]
    return Case("templated_refused", rows, dict.fromkeys(range(ROWS), "templated_text"), preset="trl")


@case
def templated_parsed() -> Case:
    rows = templated_refused().rows
    truth: dict[int, Truth | str] = {i: Truth([system(), user(question(i))], {best(i): 1.0, worst(i): 0.0}) for i in range(ROWS)}
    return Case("templated_parsed", rows, truth, preset="trl", adapter={"messages": {"templated": "parse"}})


@case
def beaver_parsed() -> Case:
    def row(i: int) -> dict[str, Any]:
        return {"prompt": f"BEGINNING OF CONVERSATION: USER: {question(i)} ASSISTANT:", "chosen": best(i), "rejected": worst(i)}

    return _pairs(row, name="beaver_parsed", preset="trl", adapter={"messages": {"templated": "parse"}})


@case
def alpaca_templated() -> Case:
    rows = [
        {
            "prompt": f"Below is an instruction.\n\n### Instruction:\n{question(i)}\n\n### Response:\n",
            "chosen": best(i),
            "rejected": worst(i),
        }
        for i in range(ROWS)
    ]
    return Case("alpaca_templated", rows, dict.fromkeys(range(ROWS), "templated_text"), preset="trl")


@case
def alpaca_template_left_as_text() -> Case:
    base = alpaca_templated()
    truth: dict[int, Truth | str] = {i: Truth([user(row["prompt"])], {best(i): 1.0, worst(i): 0.0}) for i, row in enumerate(base.rows)}
    return Case("alpaca_template_left_as_text", base.rows, truth, preset="trl", adapter={"messages": {"templated": "text"}})


@case
def tokens_are_never_left_as_text() -> Case:
    return Case("tokens_are_never_left_as_text", *_refused_tokens(), preset="trl", adapter={"messages": {"templated": "text"}})


def _refused_tokens() -> tuple[list[dict[str, Any]], dict[int, Truth | str]]:
    return templated_refused().rows, dict.fromkeys(range(ROWS), "templated_text")


@case
def reasoning_kept() -> Case:
    def row(i: int) -> dict[str, Any]:
        chosen = {**assistant(best(i)), "reasoning_content": "It may shrink."}
        return {"prompt": [user(question(i))], "chosen": [chosen], "rejected": [{**assistant(worst(i)), "thinking": "I do not care."}]}

    rows = [row(i) for i in range(ROWS)]
    truth: dict[int, Truth | str] = {
        i: Truth(
            [user(question(i))],
            {f"<think>\nIt may shrink.\n</think>\n\n{best(i)}": 1.0, f"<think>\nI do not care.\n</think>\n\n{worst(i)}": 0.0},
        )
        for i in range(ROWS)
    }
    return Case("reasoning_kept", rows, truth, preset="trl", adapter={"messages": {"reasoning": "keep"}})


@case
def reasoning_refused() -> Case:
    return Case("reasoning_refused", reasoning_kept().rows, dict.fromkeys(range(ROWS), "reasoning"), preset="trl")


@case
def reasoning_dropped() -> Case:
    truth: dict[int, Truth | str] = {i: Truth([user(question(i))], {best(i): 1.0, worst(i): 0.0}) for i in range(ROWS)}
    return Case("reasoning_dropped", reasoning_kept().rows, truth, preset="trl", adapter={"messages": {"reasoning": "drop"}})


_CALL = [{"id": "c1", "type": "function", "function": {"name": "lookup", "arguments": "{}"}}]
_TOOLS = [{"type": "function", "function": {"name": "lookup", "parameters": {}}}]


@case
def tool_calls() -> Case:
    def row(i: int) -> dict[str, Any]:
        call = {"role": "assistant", "content": None if i % 2 else "", "tool_calls": _CALL}
        prompt = [user(question(i)), call, {"role": "tool", "tool_call_id": "c1", "name": "lookup", "content": "{}"}]
        return {"prompt": prompt, "chosen": [assistant(best(i))], "rejected": [assistant(worst(i))], "tools": _TOOLS}

    rows = [row(i) for i in range(ROWS)]
    return Case("tool_calls", rows, dict.fromkeys(range(ROWS), "tool_call"), preset="trl", adapter={"ignore": ["tools"]})


@case
def tool_call_as_response() -> Case:
    def row(i: int) -> dict[str, Any]:
        chosen = {**assistant("Let me look."), "tool_calls": _CALL}
        return {"prompt": [user(question(i))], "chosen": [chosen], "rejected": [assistant("Let me look.")], "tools": _TOOLS}

    rows = [row(i) for i in range(ROWS)]
    keep = {"context": {"tools": "tools"}, "messages": {"tools": "keep"}}
    return Case("tool_call_as_response", rows, dict.fromkeys(range(ROWS), "tool_call"), preset="trl", adapter=keep)


@case
def images() -> Case:
    def row(i: int) -> dict[str, Any]:
        picture = {"bytes": "x", "path": "0.png"}
        return {"prompt": f"<image>{question(i)}", "images": [picture], "chosen": best(i), "rejected": worst(i)}

    rows = [row(i) for i in range(ROWS)]
    return Case("images", rows, dict.fromkeys(range(ROWS), "media"), preset="trl", adapter={"ignore": ["images"]})


@case
def split_column() -> Case:
    names = ("train", "test", "validation", "valid1", "train_prefs", "Dev")

    def row(i: int) -> dict[str, Any]:
        return {"prompt": question(i), "chosen": best(i), "rejected": worst(i), "split": names[i % len(names)]}

    truth: dict[int, Truth | str] = {
        i: Truth([user(question(i))], {best(i): 1.0, worst(i): 0.0}, split="train" if i % len(names) in (0, 4) else "eval")
        for i in range(ROWS)
    }
    return Case("split_column", [row(i) for i in range(ROWS)], truth, preset="trl")


@case
def name_switched_off() -> Case:
    def row(i: int) -> dict[str, Any]:
        return {"id": 1.5, "task": ["home"], "split": "left", "prompt": question(i), "chosen": best(i), "rejected": worst(i)}

    off = {"columns": {"id": False, "task": False, "split": False}}
    return _pairs(row, name="name_switched_off", preset="trl", adapter=off)


@case
def different_prompts() -> Case:
    rows = [
        {"chosen": [user(question(i)), assistant(best(i))], "rejected": [user(question(i + 1)), assistant(worst(i))]} for i in range(ROWS)
    ]
    return Case("different_prompts", rows, dict.fromkeys(range(ROWS), "prompt_mismatch"), preset="trl")


# ------------------------------------------------------------------------------------------------------- two answers and a label


def _labelled(
    name: str, make_row: Callable[[int, str, str, bool], dict[str, Any]], ties: Callable[[int], bool] | None = None, **facts: Any
) -> Case:
    rows, truth = [], dict[int, Truth | str]()
    prompt = facts.pop("prompt", lambda i: [user(question(i))])
    for i in range(ROWS):
        a, b, a_wins = _sides(i)
        rows.append(make_row(i, a, b, a_wins))
        tie = ties is not None and ties(i)
        truth[i] = Truth(prompt(i), {best(i): 1.0, worst(i): 1.0 if tie else 0.0})
    return Case(name, rows, truth, **facts)


@case
def shp() -> Case:
    def row(i: int, a: str, b: str, a_wins: bool) -> dict[str, Any]:
        votes = {"score_A": 340 if a_wins else 12, "score_B": 12 if a_wins else 340}
        return {"post_id": "p", "domain": "d", "history": question(i), **votes, "human_ref_A": a, "human_ref_B": b, "labels": int(a_wins)}

    return _labelled("shp", row, preset="shp")


@case
def shp_contradicted() -> Case:
    base = shp()
    rows = [{**row, "labels": 1 - row["labels"]} for row in base.rows]
    return Case("shp_contradicted", rows, dict.fromkeys(range(ROWS), "score_contradicts_label"), preset="shp")


@case
def helpsteer3() -> Case:
    def row(i: int, a: str, b: str, a_wins: bool) -> dict[str, Any]:
        strength = 0 if i % 5 == 0 else -2 if a_wins else 3
        given = {"domain": "general", "language": "english", "context": [user(question(i))], "response1": a, "response2": b}
        return {**given, "overall_preference": strength, "individual_preference": [{"score": strength, "reasoning": "r"}]}

    return _labelled("helpsteer3", row, lambda i: i % 5 == 0, preset="helpsteer3")


@case
def helpsteer2_preference() -> Case:
    def row(i: int, a: str, b: str, a_wins: bool) -> dict[str, Any]:
        answers = {"response_1": a, "response_2": b, "preference_strength": -1 if a_wins else 2}
        return {"split": "train", "prompt": question(i), **answers, "preference_statement": "s", "preference_elaboration": "e"}

    return _labelled("helpsteer2_preference", row, preset="helpsteer2_preference")


@case
def pku_saferlhf() -> Case:
    def row(i: int, a: str, b: str, a_wins: bool) -> dict[str, Any]:
        answers = {"prompt": question(i), "response_0": a, "response_1": b}
        safe = {"is_response_0_safe": not a_wins, "is_response_1_safe": a_wins}
        return {**answers, **safe, "better_response_id": 0 if a_wins else 1, "safer_response_id": 1 if a_wins else 0}

    return _labelled("pku_saferlhf", row, preset="pku_saferlhf")


@case
def webgpt() -> Case:
    def row(i: int, a: str, b: str, a_wins: bool) -> dict[str, Any]:
        score = 0.0 if i % 5 == 0 else 0.5 if a_wins else -0.5
        asked = {"dataset": "eli5", "id": str(i), "full_text": question(i)}
        return {"question": asked, "quotes_0": {}, "answer_0": a, "score_0": score, "answer_1": b, "score_1": -score, "tokens_0": {}}

    return _labelled("webgpt", row, lambda i: i % 5 == 0, preset="webgpt")


@case
def arena() -> Case:
    def row(i: int, a: str, b: str, a_wins: bool) -> dict[str, Any]:
        winner = ("tie", "tie (bothbad)")[i % 2] if i % 5 < 2 else "model_a" if a_wins else "model_b"
        talk = {"conversation_a": [user(question(i)), assistant(a)], "conversation_b": [user(question(i)), assistant(b)]}
        return {
            "question_id": "q",
            "model_a": "vicuna",
            "model_b": "gpt-4",
            "winner": winner,
            "judge": "j",
            **talk,
            "turn": 1,
            "language": "English",
        }

    return _labelled("arena", row, lambda i: i % 5 < 2, preset="arena")


@case
def arena_two_turns() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for i in range(ROWS):
        a, b, a_wins = _sides(i)
        talk = {
            "conversation_a": [user(question(i)), assistant(a), user("And then?"), assistant("A2")],
            "conversation_b": [user(question(i)), assistant(b), user("And then?"), assistant("B2")],
        }
        rows.append({"question_id": "q", "model_a": "x", "model_b": "y", "winner": "model_a" if a_wins else "model_b", **talk})
        truth[i] = "prompt_mismatch"
    return Case("arena_two_turns", rows, truth, preset="arena")


@case
def arena_cut() -> Case:
    truth: dict[int, Truth | str] = {i: Truth([user(question(i))], {best(i): 1.0, worst(i): 0.0}) for i in range(ROWS)}
    return Case("arena_cut", arena_two_turns().rows, truth, preset="arena", adapter={"messages": {"differ": "cut"}})


@case
def alpaca_farm() -> Case:
    def row(i: int, a: str, b: str, a_wins: bool) -> dict[str, Any]:
        value: Any = 1 if a_wins else 2
        return {"instruction": "Answer.", "input": question(i), "output_1": a, "output_2": b, "preference": str(value) if i % 3 else value}

    return _labelled("alpaca_farm", row, preset="alpaca_pref", prompt=lambda i: [user(f"Answer.\n\n{question(i)}")])


@case
def label_studio() -> Case:
    def row(i: int, a: str, b: str, a_wins: bool) -> dict[str, Any]:
        one = {"id": i, "completed_by": 1, "result": [{"type": "pairwise", "value": {"selected": "left" if a_wins else "right"}}]}
        return {"id": i, "data": {"prompt": question(i), "answer1": a, "answer2": b}, "annotations": [one] * (1 + i % 2)}

    base = _labelled("label_studio", row, preset="label_studio")
    torn = json.loads(json.dumps(base.rows[0]))
    other = json.loads(json.dumps(torn["annotations"][0]))
    other["result"][0]["value"]["selected"] = "left"
    torn["annotations"].append(other)
    return Case("label_studio", [*base.rows, torn], {**base.truth, ROWS: "unknown_label"}, preset="label_studio")


@case
def halos() -> Case:
    def row(i: int, a: str, b: str, a_wins: bool) -> dict[str, Any]:
        answers = {"prompt_id": str(i), "prompt": [user(question(i))], "output_A": [assistant(a)], "output_B": [assistant(b)]}
        rewards = {"reward_A": float(a_wins), "reward_B": float(not a_wins)}
        return {**answers, "label": int(a_wins), **rewards, "split": "train", "type": "pairwise_feedback"}

    return _labelled("halos", row, preset="halos")


@case
def unified_feedback() -> Case:
    def row(i: int, a: str, b: str, a_wins: bool) -> dict[str, Any]:
        talk = {"conv_A": [user(question(i)), assistant(a)], "conv_B": [user(question(i)), assistant(b)]}
        return {"id": f"u{i}", **talk, "conv_A_rating": float(a_wins), "conv_B_rating": float(not a_wins), "num_turns": 2, "source": "shp"}

    return _labelled("unified_feedback", row, preset="unified_feedback")


@case
def signed_with_a_band() -> Case:
    def row(i: int, a: str, b: str, a_wins: bool) -> dict[str, Any]:
        return {"q": question(i), "x": a, "y": b, "strength": "0.2" if i % 4 == 0 else 1.5 if a_wins else -1.5}

    keys = {
        "shape": "ab",
        "columns": {"prompt": "q", "a": "x", "b": "y"},
        "label": {"column": "strength", "positive": "a", "tie_band": 0.25},
    }
    return _labelled("signed_with_a_band", row, lambda i: i % 4 == 0, adapter=keys)


@case
def unknown_winner() -> Case:
    def row(i: int, a: str, b: str, a_wins: bool) -> dict[str, Any]:
        return {"q": question(i), "x": a, "y": b, "winner": "left"}

    keys = {"shape": "ab", "columns": {"prompt": "q", "a": "x", "b": "y"}, "label": {"column": "winner", "a": ["a"], "b": ["b"]}}
    base = _labelled("unknown_winner", row, adapter=keys)
    return Case(base.name, base.rows, dict.fromkeys(range(ROWS), "unknown_label"), adapter=keys)


# ------------------------------------------------------------------------------------------------------- lists


@case
def ultrafeedback() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for i in range(ROWS):
        scores = {second(i): 8.5 if i % 4 == 0 else 6.0, best(i): 8.5, worst(i): 4.0, burnt(i): 1.0}
        models = ("llama", "gpt-4", "alpaca", "pythia")
        done = [
            {"annotations": {"h": {"Rating": "3"}}, "model": model, "response": text, "overall_score": score, "critique": "c"}
            for (text, score), model in zip(scores.items(), models, strict=True)
        ]
        rows.append({"source": "sharegpt", "instruction": question(i), "models": list(models), "completions": done})
        truth[i] = Truth([user(question(i))], dict(scores), dict(zip(scores, models, strict=True)))
    return Case("ultrafeedback", rows, truth, preset="ultrafeedback")


@case
def nectar() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for i in range(ROWS):
        ranks = {second(i): 2.0, burnt(i): 4.0, best(i): 1.0, worst(i): 3.0}
        answers = [{"answer": text, "model": f"m{k}", "rank": rank} for k, (text, rank) in enumerate(ranks.items())]
        prompt = f"\n\nHuman: {question(i)}\n\nAssistant: "
        rows.append({"prompt": prompt, "answers": answers, "turns": 1, "num_responses": 4, "source": ["lmsys"], "good_natured": True})
        truth[i] = Truth([user(question(i))], {text: -rank for text, rank in ranks.items()})
    return Case("nectar", rows, truth, preset="nectar")


@case
def distilabel() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for i in range(ROWS):
        ratings: list[Any] = [["3", "4.5", "N/A"], [3.0, 5.0, 1.0], ["3", " 4 ", None], ["3", "4,5", "1"]][i % 4]
        numbers = [[3.0, 4.5, None], [3.0, 5.0, 1.0], [3.0, 4.0, None], None][i % 4]
        texts = [second(i), best(i), worst(i)]
        rows.append(
            {
                "instruction": question(i),
                "generations": texts,
                "generation_models": ["a", "b", "c"],
                "ratings": ratings,
                "rationales": ["x"],
            }
        )
        truth[i] = "not_a_number" if numbers is None else Truth([user(question(i))], dict(zip(texts, numbers, strict=True)))
    return Case("distilabel", rows, truth, preset="distilabel")


@case
def rlhflow() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for i in range(ROWS):
        scores = {second(i): 0.1, best(i): 2.5, worst(i): -1.25}
        rows.append({"prompt": question(i), "responses": list(scores), "rewards": list(scores.values())})
        truth[i] = Truth([user(question(i))], dict(scores))
    return Case("rlhflow", rows, truth, preset="rlhflow")


@case
def simpo() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for i in range(ROWS):
        scores = {second(i): 0.1, best(i): 0.2, worst(i): 0.05}
        talk = {"chosen": [user(question(i)), assistant(best(i))], "rejected": [user(question(i)), assistant(worst(i))]}
        rows.append(
            {
                "prompt_id": str(i),
                "prompt": question(i),
                "all_generated_responses": list(scores),
                "all_rm_scores": list(scores.values()),
                **talk,
            }
        )
        truth[i] = Truth([user(question(i))], dict(scores))
    return Case("simpo", rows, truth, preset="simpo")


@case
def summarize() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for i in range(ROWS):
        a, b, a_wins = _sides(i)
        info = {"id": f"t{i}", "post": question(i) if i % 3 else None, "article": None if i % 3 else question(i), "title": "t"}
        done = [{"text": f" {a}", "policy": "sup2", "note": None}, {"text": f" {b}", "policy": "ref", "note": None}]
        rows.append(
            {"info": info, "split": "valid1" if i % 4 == 0 else "train", "summaries": done, "choice": 0 if a_wins else 1, "worker": "w"}
        )
        answers: dict[str, float | None] = {f" {best(i)}": 1.0, f" {worst(i)}": 0.0}
        truth[i] = Truth([user(question(i))], answers, {f" {a}": "sup2", f" {b}": "ref"}, split="eval" if i % 4 == 0 else "train")
    return Case("summarize", rows, truth, preset="summarize")


@case
def canonical_list_of_transcripts() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for i in range(ROWS):
        responses = [hh_text(i, best(i)), hh_text(i, worst(i))]
        rows.append({"prompt": hh_text(i, None), "responses": responses, "rewards": [1, 0], "sources": ["human", "gpt-4"]})
        truth[i] = Truth(hh_prompt(i), {best(i): 1.0, worst(i): 0.0}, {best(i): "human", worst(i): "gpt-4"})
    return Case("canonical_list_of_transcripts", rows, truth)


@case
def mixed_rewards() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    given: list[tuple[list[Any], list[float | None] | str]] = [
        ([4.5, 1], [4.5, 1.0]),
        (["4.5", "1"], [4.5, 1.0]),
        (["N/A", "1"], [None, 1.0]),
        ([True, False], [1.0, 0.0]),
        ([None, 2], [None, 2.0]),
        (["4,5", "1"], "not_a_number"),
        ([float("inf"), 1], "nonfinite_reward"),
        (["nan", "-1e3"], [None, -1000.0]),
    ]
    for i, (rewards, numbers) in enumerate(given):
        rows.append({"prompt": question(i), "responses": [best(i), worst(i)], "rewards": rewards, "sources": ["human", "gpt-4"]})
        truth[i] = numbers if isinstance(numbers, str) else Truth([user(question(i))], dict(zip((best(i), worst(i)), numbers, strict=True)))
    return Case("mixed_rewards", rows, truth)


@case
def five_attributes() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for i in range(ROWS):
        rewards = [{"helpfulness": 1, "verbosity": 3}, {"helpfulness": 4, "verbosity": None if i % 4 == 0 else 1}]
        rows.append({"prompt": question(i), "responses": [worst(i), best(i)], "rewards": rewards, "sources": ["human", "gpt-4"]})
        truth[i] = Truth([user(question(i))], {worst(i): -0.5, best(i): None if i % 4 == 0 else 3.5})
    label = {"scores": ["rewards[].helpfulness", "rewards[].verbosity"], "weights": [1.0, -0.5]}
    return Case("five_attributes", rows, truth, adapter={"shape": "list", "label": label})


@case
def list_beside_a_pair() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for i in range(ROWS):
        rows.append({"prompt": question(i), "responses": [second(i), best(i), worst(i)], "chosen": best(i), "rejected": worst(i)})
        truth[i] = Truth([user(question(i))], {second(i): None, best(i): 1.0, worst(i): 0.0})
    return Case("list_beside_a_pair", rows, truth)


@case
def forms_mixed() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for i in range(ROWS):
        listed = {"responses": [worst(i), best(i)], "rewards": [0, 1], "sources": ["a", "b"]}
        rows.append({"prompt": question(i), **(listed if i % 2 else {"chosen": best(i), "rejected": worst(i)})})
        truth[i] = Truth([user(question(i))], {best(i): 1.0, worst(i): 0.0})
    return Case("forms_mixed", rows, truth)


@case
def lists_as_text() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for i in range(ROWS):
        texts, rewards = [worst(i), best(i)], ["[0.5, 2]", "[0.5 2. ]"][i % 2]
        rows.append(
            {"prompt": question(i), "responses": json.dumps(texts) if i % 2 else repr(texts), "rewards": rewards, "sources": "['a', 'b']"}
        )
        truth[i] = Truth([user(question(i))], {worst(i): 0.5, best(i): 2.0})
    rows.append({**rows[0], "sources": "['a' 'b']"})
    truth[ROWS] = "structured_text"
    return Case("lists_as_text", rows, truth)


# ------------------------------------------------------------------------------------------------------- rows, trees, single


@case
def helpsteer2() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for half in (worst, best):
        for i in range(ROWS):
            marks = {"helpfulness": 4 if half is best else 1, "correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 2}
            rows.append({"prompt": question(i), "response": half(i), **marks})
    for i in range(ROWS):
        truth[i] = Truth([user(question(i))], {best(i): 4.0, worst(i): 1.0})
    return Case("helpsteer2", rows, truth, preset="helpsteer2")


@case
def helpsteer2_turns() -> Case:
    base = helpsteer2()
    text = "Hello.\n<extra_id_1>Assistant\nGood day.\n<extra_id_1>User\n{}"
    rows = [{**row, "prompt": text.format(row["prompt"])} for row in base.rows]
    lead = [user("Hello."), assistant("Good day.")]
    truth: dict[int, Truth | str] = {i: Truth([*lead, user(question(i))], {best(i): 4.0, worst(i): 1.0}) for i in range(ROWS)}
    return Case("helpsteer2_turns", rows, truth, preset="helpsteer2")


@case
def rows_by_an_id() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for i in range(ROWS):
        for k, text in enumerate((worst(i), best(i))):
            rows.append({"qid": i, "prompt": question(i), "response": text, "rank": 2 - k})
        truth[2 * i] = Truth([user(question(i))], {best(i): 1.0, worst(i): 0.0})
    rows[3]["prompt"] = "Another question?"
    truth[2] = "group_conflict"
    keys = {"shape": "rows", "group": {"by": "qid"}, "label": {"ranks": "rank", "base": 1}}
    return Case("rows_by_an_id", rows, truth, adapter=keys)


@case
def oasst() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for i in range(ROWS):
        start = len(rows)
        texts = (second(i), best(i), worst(i))
        node = {"lang": "en", "message_tree_id": f"p{i}", "created_date": "2023-02-05"}
        rows.append({"message_id": f"p{i}", "parent_id": None, "text": question(i), "role": "prompter", "rank": None, **node})
        for k, (text, rank) in enumerate(zip(texts, (1, 0, 2), strict=True)):
            rows.append({"message_id": f"p{i}a{k}", "parent_id": f"p{i}", "text": text, "role": "assistant", "rank": rank, **node})
        truth[start] = Truth([user(question(i))], {texts[0]: -2.0, texts[1]: -1.0, texts[2]: -3.0})
        rows.append({"message_id": f"p{i}u", "parent_id": f"p{i}a1", "text": "And then?", "role": "prompter", "rank": 0, **node})
        for k, text in enumerate((worst(i), best(i))):
            rows.append({"message_id": f"p{i}u{k}", "parent_id": f"p{i}u", "text": text, "role": "assistant", "rank": 1 - k, **node})
        lead = [user(question(i)), assistant(best(i)), user("And then?")]
        truth[start + 4] = Truth(lead, {best(i): 1.0, worst(i): 0.0})
    return Case("oasst", rows, truth, preset="oasst")


@case
def oasst_trees() -> Case:
    rows, truth = [], dict[int, Truth | str]()
    for i in range(ROWS):
        texts = ((second(i), 1), (best(i), 0), (worst(i), 2))
        replies = [
            {"message_id": f"a{k}", "text": text, "role": "assistant", "rank": rank, "replies": []} for k, (text, rank) in enumerate(texts)
        ]
        root = {"message_id": f"p{i}", "text": question(i), "role": "prompter", "replies": replies}
        rows.append({"message_tree_id": f"p{i}", "tree_state": "ready", "prompt": root})
        truth[i] = Truth([user(question(i))], {text: -float(rank) for text, rank in texts})
    return Case("oasst_trees", rows, truth, preset="oasst")


def _unpaired(name: str, make_row: Callable[[int, str, bool], dict[str, Any]], **facts: Any) -> Case:
    rows = [make_row(i, best(i) if i % 2 else worst(i), bool(i % 2)) for i in range(ROWS)]
    truth: dict[int, Truth | str] = {i: Truth([user(question(i))], {best(i) if i % 2 else worst(i): float(i % 2)}) for i in range(ROWS)}
    return Case(name, rows, truth, **facts)


@case
def kto() -> Case:
    return _unpaired("kto", lambda i, text, good: {"prompt": question(i), "completion": text, "label": good}, preset="kto")


@case
def kto_messages() -> Case:
    return _unpaired("kto_messages", lambda i, text, good: {"messages": [user(question(i)), assistant(text)], "label": good}, preset="kto")


@case
def thumbs() -> Case:
    def row(i: int, text: str, good: bool) -> dict[str, Any]:
        return {"q": question(i), "reply": text, "feedback": {"thumb": "thumbs_up" if good else "thumbs_down"}}

    label = {"column": "feedback.thumb", "true": ["thumbs_up"], "false": ["thumbs_down"], "skip": [None, "none"]}
    keys = {"shape": "unpaired", "columns": {"prompt": "q", "response": "reply"}, "label": label}
    base = _unpaired("thumbs", row, adapter=keys)
    rows = [*base.rows, {"q": "x", "reply": "y", "feedback": None}, {"q": "x", "reply": "y", "feedback": {"thumb": "meh"}}]
    return Case("thumbs", rows, {**base.truth, ROWS + 1: "unknown_label"}, adapter=keys)


def _golden(name: str, make_row: Callable[[int], dict[str, Any]], prompt: Callable[[int], list[dict[str, str]]], **facts: Any) -> Case:
    rows = [make_row(i) for i in range(ROWS)]
    return Case(name, rows, {i: Truth(prompt(i), {best(i): None}) for i in range(ROWS)}, golden=True, **facts)


@case
def sft_messages() -> Case:
    def row(i: int) -> dict[str, Any]:
        return {"id": f"g{i}", "messages": [system(), user(question(i)), assistant(best(i))], "source": "personas"}

    return _golden("sft_messages", row, lambda i: [system(), user(question(i))], preset="sft_messages")


@case
def alpaca() -> Case:
    def row(i: int) -> dict[str, Any]:
        return {"instruction": question(i), "input": "It is wet." if i % 2 else "", "output": best(i)}

    return _golden("alpaca", row, lambda i: [user(question(i) + ("\n\nIt is wet." if i % 2 else ""))], preset="alpaca")


@case
def hh_chosen() -> Case:
    return _golden("hh_chosen", lambda i: {"prompt": hh_text(i, None), "chosen": hh_text(i, best(i))}, hh_prompt, preset="hh_chosen")


@case
def golden_transcript() -> Case:
    return _golden("golden_transcript", lambda i: {"prompt": hh_text(i, None), "response": hh_text(i, best(i))}, hh_prompt)


@case
def arena_55k() -> Case:
    """One text per turn in lists written as JSON; the winner has 1 in a column of its own."""
    rows: list[dict[str, Any]] = []
    truth: dict[int, Truth | str] = {}
    for i in range(ROWS):
        one, other, first_better = _sides(i)
        tie = i % 4 == 0
        rows.append(
            {
                "id": i,
                "model_a": "gpt",
                "model_b": "llama",
                "prompt": json.dumps([question(i)]),
                "response_a": json.dumps([one]),
                "response_b": json.dumps([other]),
                "winner_model_a": int(first_better and not tie),
                "winner_model_b": int(not first_better and not tie),
                "winner_tie": int(tie),
            }
        )
        answers = {one: 0.0, other: 0.0} if tie else {best(i): 1.0, worst(i): 0.0}
        truth[i] = Truth([user(question(i))], dict(answers), {one: "gpt", other: "llama"})
    return Case("arena_55k", rows, truth, "arena")


@case
def stack_exchange_answers() -> Case:
    """All answers of a question with the logarithm of their votes."""
    rows = [
        {
            "qid": i,
            "question": question(i),
            "answers": [{"answer_id": 1, "pm_score": 0, "text": worst(i)}, {"answer_id": 2, "pm_score": 5, "text": best(i)}],
            "date": "2020/01/01",
            "metadata": ["x"],
        }
        for i in range(ROWS)
    ]
    truth: dict[int, Truth | str] = {i: Truth([user(question(i))], {best(i): 5.0, worst(i): 0.0}) for i in range(ROWS)}
    return Case("stack_exchange_answers", rows, truth, "stack_exchange")


@case
def capybara() -> Case:
    return _pairs(
        lambda i: {
            "source": "Airoboros",
            "conversation": [{"input": question(i), "output": best(i)}],
            "prompt": question(i),
            "chosen": [user(question(i)), assistant(best(i))],
            "rejected": [user(question(i)), assistant(worst(i))],
            "rating_chosen": 5,
            "rating_rejected": 2,
            "chosen_model": "a",
            "rejected_model": "b",
        },
        name="capybara",
        preset="argilla",
    )


@case
def llama_factory_kto() -> Case:
    said = [best(i) if i % 2 else worst(i) for i in range(ROWS)]
    rows = [{"instruction": question(i), "input": "", "output": said[i], "kto_tag": bool(i % 2)} for i in range(ROWS)]
    truth: dict[int, Truth | str] = {i: Truth([user(question(i))], {said[i]: float(i % 2)}) for i in range(ROWS)}
    return Case("llama_factory_kto", rows, truth, "kto")


def all_cases() -> Iterator[Case]:
    for make in CASES.values():
        yield make()

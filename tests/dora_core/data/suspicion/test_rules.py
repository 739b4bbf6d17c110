"""Each rule finds its sign, counts it, names at most three rows, and is silent on sound data."""

from __future__ import annotations

from typing import Any

import pytest

from dora_core.data.suspicion import EXAMPLES, rules
from tests.dora_core.data.suspicion.given import findings, seen

LONG = "Wipe the wool scarf with a damp cloth, then let it dry in the shade for two hours and turn it over"
SOUND = [seen(i, prompt=f"How do I clean number {i} of these things here?", task="home") for i in range(60)]
SOUND += [seen(i, ("No", "A longer answer, but a worse one."), task="work") for i in range(60, 90)]


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "text"} for role in roles]


SIGNS: dict[str, tuple[list[Any], list[Any]]] = {
    "response_begins_with_prompt": (
        [seen(prompt="How do I clean it, please?", responses=("How do I clean it, please? Wipe it.", "No"))],
        [seen(prompt="Why", responses=("Why not", "No"))],
    ),
    "special_tokens": (
        [seen(responses=("Wipe it.</s>", "No")), seen(prompt="<s>Hello"), seen(responses=("[CLS] a", "No"))],
        [seen(responses=("<s>old</s> new", "<p>Use</p>")), seen(responses=("a [link](b)", "x < y"))],
    ),
    "json_responses": (
        [seen(responses=('{"text": "Wipe it."}', "No"))],
        [seen(responses=('{"text": "Wipe it."}', "No"), prompt="Give JSON"), seen(responses=("[1] see there", "{x}"))],
    ),
    "tied_scores": ([seen(rewards=(0.5, 0.5))], [seen(rewards=(0.5, None)), seen(rewards=(1, 0))]),
    "repeated_roles": (
        [seen(prompt=turns("user", "user")), seen(prompt=turns("assistant", "user"))],
        [seen(prompt=turns("system", "user", "assistant", "tool", "tool", "assistant", "user"))],
    ),
    "repeated_ids": ([seen(renamed=True)], [seen()]),
    "longer_side": (
        [seen(i, ("a longer text", "short")) for i in range(50)],
        [seen(i, ("a longer text", "short") if i % 2 else ("short", "a longer text")) for i in range(60)],
    ),
    "one_task_source": (
        [seen(i, sources=("human", "m"), task="math") for i in range(30)] + [seen(sources=("human", "x"), task="home")],
        [seen(i, task="math") for i in range(30)] + [seen(task="home")],
    ),
    "reward_scales": (
        [seen(i, rewards=(0.9, 0.2)) for i in range(9)] + [seen(i, rewards=(9, 6)) for i in range(9)],
        [seen(i, rewards=(1, 0)) for i in range(9)]
        + [seen(i, rewards=(5, 0)) for i in range(9)]
        + [seen(i, rewards=(0.5, -3)) for i in range(9)],
    ),
    "prompt_in_both_splits": (
        [seen(0, split="train"), seen(1, split="eval")],
        [seen(0, split="train"), seen(1, split="eval", prompt="Another one")],
    ),
    "near_duplicates": (
        [seen(0, prompt=LONG + " now"), seen(1, prompt=LONG + " please", split="eval")],
        [seen(0, prompt=LONG), seen(1, prompt="Describe in a few words why the sea is salt and the rivers are not", split="eval")],
    ),
}


def given(records: list[Any]) -> list[Any]:
    """Records whose split the user gave."""
    from dataclasses import replace

    return [one._replace(record=replace(one.record, split=one.split)) for one in records]


@pytest.mark.parametrize("rule", SIGNS)
def test_rule_finds_its_sign_and_nothing_in_sound_data(rule: str) -> None:
    suspicious, sound = SIGNS[rule]
    (finding, *_) = findings(rule, given(suspicious))
    assert finding.rule == rule and finding.count >= 1 and finding.hint
    assert 1 <= len(finding.examples) <= EXAMPLES and all(at.file == "a.jsonl" for at in finding.examples)
    assert findings(rule, given(sound)) == []
    assert findings(rule, given(SOUND)) == []


def test_every_rule_is_tested_here_or_in_a_file_of_its_own() -> None:
    assert rules().keys() == SIGNS.keys() | {"evaluation_overlap", "evaluation_file_in_train"}


def test_responses_that_two_sources_share_are_near_duplicates() -> None:
    copied = [seen(i, (LONG + " here", LONG + " there"), sources=("human", "gpt-4")) for i in range(2)]
    (finding,) = findings("near_duplicates", copied)
    assert "responses of two sources are nearly equal (gpt-4 and human)" in finding.message
    assert findings("near_duplicates", [seen(0, (LONG + " here", LONG + " there"), sources=("human", "human"))]) == []


def test_a_few_special_tokens_in_large_data_are_a_note_and_many_refuse() -> None:
    few = [seen(i, responses=("Wipe.</s>" if i == 7 else "Wipe.", "No")) for i in range(200)]
    assert findings("special_tokens", few)[0].level == "note"
    assert findings("special_tokens", few[:50])[0].level == "refuse"


def test_splits_by_hash_cannot_share_a_prompt_and_are_not_compared() -> None:
    assert findings("prompt_in_both_splits", [seen(0, split="train"), seen(1, split="eval")]) == []


def test_examples_are_the_first_three_rows() -> None:
    (finding,) = findings("tied_scores", [seen(i, rewards=(1, 1)) for i in range(5)])
    assert (finding.count, [at.row for at in finding.examples]) == (5, [0, 1, 2])
    assert finding.text().startswith("5 of 5 records express no preference")


# ------------------------------------------------------------------------------------------------- decontamination, file names


def test_thirteen_words_in_a_row_of_an_evaluation_file_are_an_overlap_and_twelve_are_not() -> None:
    reference = "Before. " + LONG + ". After that comes more."
    overlapping, apart = " ".join(LONG.split()[:13]), " ".join(LONG.split()[:12])
    (finding,) = findings("evaluation_overlap", [seen(responses=(f"Well, {overlapping.upper()}!", "No"))], [reference])
    assert finding.level == "refuse" and finding.count == 1
    assert findings("evaluation_overlap", [seen(responses=(f"Well, {apart} or not", "No"))], [reference]) == []
    assert findings("evaluation_overlap", [seen(responses=(overlapping, "No"), split="eval")], [reference]) == [], (
        "held-out rows may overlap"
    )


@pytest.mark.parametrize(
    ("name", "suspicious"),
    [
        ("data/test.jsonl", True),
        ("test-00000-of-00001.parquet", True),
        ("my_validation_v2.json", True),
        ("train.jsonl", False),
        ("train_test_split.jsonl", False),
        ("latest.jsonl", False),
        ("test/train.jsonl", False),
    ],
)
def test_file_named_like_evaluation_data(name: str, suspicious: bool) -> None:
    from tests.dora_core.data.suspicion.given import DATA

    for place, gives_split, expected in (
        ("data.train[0]", False, suspicious),
        ("data.train[0]", True, False),
        ("data.eval[0]", False, False),
    ):
        rule = rules()["evaluation_file_in_train"](DATA)
        rule.opened(place, [name], gives_split)
        assert [finding.level for finding in rule.findings()] == (["refuse"] if expected else [])

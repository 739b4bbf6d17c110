"""The same prompt in training and evaluation data."""

from __future__ import annotations

import pytest

from dora_core.config.data import DataConfig
from dora_core.data.suspicion import rules
from tests.dora_core.data.suspicion.given import assert_found, assert_nothing, findings, given, seen

SUSPICIOUS = [seen(0, split="train"), seen(1, split="eval")]
PLAIN = [seen(0, split="train"), seen(1, split="eval", prompt="Another one")]
MANY = given([seen(9, split="train"), *(seen(i, split="eval") for i in range(5))])


def test_the_sign_is_found() -> None:
    assert_found("prompt_in_both_splits", SUSPICIOUS)


def test_sound_data_has_no_finding() -> None:
    assert_nothing("prompt_in_both_splits", PLAIN)


def test_examples_are_the_first_three_rows() -> None:
    (finding,) = findings("prompt_in_both_splits", MANY)
    assert (finding.count, [at.row for at in finding.examples]) == (5, [0, 1, 2])
    assert finding.text().startswith("5 of 5 evaluation records have a prompt that training data has, too")


def test_splits_by_hash_cannot_share_a_prompt_and_are_not_compared() -> None:
    assert findings("prompt_in_both_splits", [seen(0, split="train"), seen(1, split="eval")]) == []


@pytest.mark.parametrize(
    ("overlap", "level", "consequence"),
    [
        ("drop_from_train", "note", "1 of 2 training records are left out of training"),
        ("refuse", "refuse", "1 of 2 training records would make evaluation measure memory"),
        ("allow", "note", "1 of 2 training records are trained on"),
    ],
)
def test_the_setting_decides(overlap: str, level: str, consequence: str) -> None:
    rule = rules()["prompt_in_both_splits"](DataConfig.model_validate({"train": [{"path": "a"}], "split_overlap": overlap}))
    for one in given([*SUSPICIOUS, seen(2, split="train", prompt="Another one")]):
        rule.see(one)
    (finding,) = rule.findings()
    assert finding.level == level and consequence in finding.message
    assert "data.split_overlap" in finding.hint

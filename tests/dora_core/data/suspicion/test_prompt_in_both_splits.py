"""The same prompt in training and evaluation data."""

from __future__ import annotations

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

"""The same question in both splits under another prompt."""

from __future__ import annotations

from tests.dora_core.data.suspicion.given import assert_found, assert_nothing, findings, seen

SUSPICIOUS = [seen(0, split="train", prompt="How high is it?"), seen(1, split="eval", prompt="How  high is it?")]


def test_the_sign_is_found() -> None:
    assert_found("question_in_both_splits", SUSPICIOUS)
    (finding,) = findings("question_in_both_splits", [*SUSPICIOUS, seen(2, split="eval", prompt="Another one")])
    assert finding.message.startswith("1 of 2 held-out records ask a question that training data asks")
    assert "data.split_by: question" in finding.hint


def test_sound_data_and_equal_prompts_have_no_finding() -> None:
    assert_nothing("question_in_both_splits", [SUSPICIOUS[0], seen(1, split="eval", prompt="Another one")])
    assert_nothing("question_in_both_splits", [seen(0, split="train"), seen(1, split="eval")])  # the rule prompt_in_both_splits

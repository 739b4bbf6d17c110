"""Responses that begin with their prompt."""

from __future__ import annotations

from tests.dora_core.data.suspicion.given import assert_found, assert_nothing, findings, seen

SUSPICIOUS = [seen(prompt="How do I clean it, please?", responses=("How do I clean it, please? Wipe it.", "No"))]
PLAIN = [seen(prompt="Why", responses=("Why not", "No"))]
MANY = [seen(i, prompt="How do I clean it, please?", responses=("How do I clean it, please? Wipe it.", "No")) for i in range(5)]


def test_the_sign_is_found() -> None:
    assert_found("response_begins_with_prompt", SUSPICIOUS)


def test_sound_data_has_no_finding() -> None:
    assert_nothing("response_begins_with_prompt", PLAIN)


def test_examples_are_the_first_three_rows() -> None:
    (finding,) = findings("response_begins_with_prompt", MANY)
    assert (finding.count, [at.row for at in finding.examples]) == (5, [0, 1, 2])
    assert finding.text().startswith("5 of 5 records have a response that begins with its prompt")

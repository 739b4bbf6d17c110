"""Prompts with two turns of one role in a row."""

from __future__ import annotations

from tests.dora_core.data.suspicion.given import assert_found, assert_nothing, findings, seen, turns

SUSPICIOUS = [seen(prompt=turns("user", "user")), seen(prompt=turns("assistant", "user"))]
PLAIN = [seen(prompt=turns("system", "user", "assistant", "tool", "tool", "assistant", "user"))]
MANY = [seen(i, prompt=turns("user", "user")) for i in range(5)]


def test_the_sign_is_found() -> None:
    assert_found("repeated_roles", SUSPICIOUS)


def test_sound_data_has_no_finding() -> None:
    assert_nothing("repeated_roles", PLAIN)


def test_examples_are_the_first_three_rows() -> None:
    (finding,) = findings("repeated_roles", MANY)
    assert (finding.count, [at.row for at in finding.examples]) == (5, [0, 1, 2])
    assert finding.text().startswith("5 of 5 records have a prompt with two consecutive turns")

"""Texts that are words for a missing value: kept, and noted."""

from __future__ import annotations

from tests.dora_core.data.suspicion.given import assert_found, assert_nothing, findings, seen

SUSPICIOUS = [seen(responses=("nan", "No")), seen(prompt="None"), seen(responses=("A", " <NA>\n"))]
PLAIN = [
    seen(responses=("nan is short for not a number", "naan")),
    seen(prompt=[{"role": "system", "content": "null"}, {"role": "user", "content": "a"}]),
]
MANY = [seen(i, responses=("null", "No")) for i in range(5)]


def test_the_sign_is_found() -> None:
    assert assert_found("missing_value_texts", SUSPICIOUS).count == 3


def test_sound_data_has_no_finding() -> None:
    assert_nothing("missing_value_texts", PLAIN)


def test_examples_are_the_first_three_rows() -> None:
    (finding,) = findings("missing_value_texts", MANY)
    assert (finding.level, finding.count, [at.row for at in finding.examples]) == ("note", 5, [0, 1, 2])
    assert finding.text().startswith("5 of 5 records have a text that is a word for a missing value")

"""Ids that an earlier input has."""

from __future__ import annotations

from tests.dora_core.data.suspicion.given import assert_found, assert_nothing, findings, seen

SUSPICIOUS = [seen(renamed=True)]
PLAIN = [seen()]
MANY = [seen(i, renamed=True) for i in range(5)]


def test_the_sign_is_found() -> None:
    assert_found("repeated_ids", SUSPICIOUS)


def test_sound_data_has_no_finding() -> None:
    assert_nothing("repeated_ids", PLAIN)


def test_examples_are_the_first_three_rows() -> None:
    (finding,) = findings("repeated_ids", MANY)
    assert (finding.count, [at.row for at in finding.examples]) == (5, [0, 1, 2])
    assert finding.text().startswith("5 of 5 records have an id that an earlier input has")

"""Preferences that length alone explains."""

from __future__ import annotations

from dora_core.data.suspicion.longer_side import FEWEST
from tests.dora_core.data.suspicion.given import assert_found, assert_nothing, findings, seen

SUSPICIOUS = [seen(i, ("a longer text", "short")) for i in range(50)]
PLAIN = [seen(i, ("a longer text", "short") if i % 2 else ("short", "a longer text")) for i in range(60)]
MANY = [seen(i, ("short", "a longer text")) for i in range(50)]


def test_the_sign_is_found() -> None:
    assert_found("longer_side", SUSPICIOUS)


def test_sound_data_has_no_finding() -> None:
    assert_nothing("longer_side", PLAIN)


def test_examples_are_the_first_three_rows() -> None:
    (finding,) = findings("longer_side", MANY)
    assert (finding.count, [at.row for at in finding.examples]) == (50, [0, 1, 2])
    assert finding.text().startswith("in 50 of 50 preferences the preferred response is the shorter one")


def test_fewer_pairs_than_the_bound_say_nothing() -> None:
    assert findings("longer_side", [seen(i, ("a longer text", "short")) for i in range(FEWEST - 1)]) == []

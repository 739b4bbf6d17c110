"""Records whose rewards are all equal."""

from __future__ import annotations

from tests.dora_core.data.suspicion.given import assert_found, assert_nothing, findings, seen

SUSPICIOUS = [seen(rewards=(0.5, 0.5))]
PLAIN = [seen(rewards=(0.5, None)), seen(rewards=(1, 0))]
MANY = [seen(i, rewards=(1, 1)) for i in range(5)]


def test_the_sign_is_found() -> None:
    assert_found("tied_scores", SUSPICIOUS)


def test_sound_data_has_no_finding() -> None:
    assert_nothing("tied_scores", PLAIN)


def test_examples_are_the_first_three_rows() -> None:
    (finding,) = findings("tied_scores", MANY)
    assert (finding.count, [at.row for at in finding.examples]) == (5, [0, 1, 2])
    assert finding.text().startswith("5 of 5 records express no preference")

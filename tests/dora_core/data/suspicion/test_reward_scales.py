"""Rewards of one source on two scales."""

from __future__ import annotations

from tests.dora_core.data.suspicion.given import assert_found, assert_nothing, findings, seen

SUSPICIOUS = [seen(i, rewards=(0.9, 0.2)) for i in range(9)] + [seen(i, rewards=(9, 6)) for i in range(9)]
PLAIN = [
    *(seen(i, rewards=(1, 0)) for i in range(9)),
    *(seen(i, rewards=(5, 0)) for i in range(9)),
    *(seen(i, rewards=(0.5, -3)) for i in range(9)),
]
MANY = [seen(i, rewards=(0.9, 0.2)) for i in range(9)] + [seen(i, rewards=(9, 6)) for i in range(9, 18)]


def test_the_sign_is_found() -> None:
    assert_found("reward_scales", SUSPICIOUS)


def test_sound_data_has_no_finding() -> None:
    assert_nothing("reward_scales", PLAIN)


def test_one_row_of_each_scale_is_named() -> None:
    (finding,) = findings("reward_scales", MANY)
    assert "rewards of human span two scales: 0 to 1 in 9 records, up to 10 in 9 records" in finding.message
    assert (finding.count, [at.row for at in finding.examples]) == (18, [0, 9])

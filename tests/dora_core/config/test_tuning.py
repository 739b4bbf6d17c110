"""Rungs of a trial by hand."""

from __future__ import annotations

from dora_core.config.tuning import TuneConfig


def test_milestones_are_powers_of_the_reduction() -> None:
    assert TuneConfig().milestones == [1, 3, 9]
    assert TuneConfig(rungs=1).milestones == [1]
    assert TuneConfig(rungs=4, reduction=2).milestones == [1, 2, 4, 8]


def test_steps_are_shares_of_the_trial_rounded_up() -> None:
    assert TuneConfig().steps(90) == [10, 30, 90]
    assert TuneConfig().steps(10) == [2, 4, 10]  # 10/9 = 1.1, 30/9 = 3.3
    assert TuneConfig().steps(2) == [1, 1, 2], "a trial of two steps is measured three times all the same"

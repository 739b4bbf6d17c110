"""How reports write numbers."""

from __future__ import annotations

import math

from dora_core.evaluation.metrics import Interval
from flows.report.numbers import interval, p_value, percent


def test_numbers() -> None:
    assert (percent(0.1234), p_value(0.0004), p_value(0.25)) == ("12.3%", "< 0.001", "0.250")


def test_an_interval_that_is_undefined_is_a_dash_and_one_without_bounds_a_number() -> None:
    assert interval(None) == interval(Interval(value=math.nan, low=math.nan, high=math.nan, n=0)) == "–"
    assert interval(Interval(value=0.5, low=math.nan, high=math.nan, n=1)) == "0.500"
    assert interval(Interval(value=0.5, low=0.25, high=0.75, n=9), 2) == "0.50 [0.25, 0.75]"

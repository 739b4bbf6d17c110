"""Numbers of labels."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_core.data.adapter.numbers import NotANumber, describe, to_number


@pytest.mark.parametrize(
    ("value", "number"),
    [(4, 4.0), ("4.5", 4.5), (" -1e3 ", -1000.0), (".5", 0.5), (True, 1.0), (False, 0.0), (np.float64(2.5), 2.5), ("+3", 3.0)]
    + [(text, None) for text in (None, "", "N/A", "n/a", "NULL", "None", "nan", "NaN ", "na")],
)
def test_value_is_a_number_or_not_measured(value, number):
    assert to_number(value) == number


@pytest.mark.parametrize("value", ["4,5", "1,000", "1.000,5", "four", "4.5/5", "1_0", "٣", [1], {"a": 1}, b"1", "0x1"])
def test_other_values_are_refused(value):
    with pytest.raises(NotANumber) as caught:
        to_number(value)
    assert not caught.value.nonfinite


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "inf", "-Infinity", "1e999", 10**400])
def test_numbers_without_a_finite_value_are_refused_as_such(value):
    with pytest.raises(NotANumber) as caught:
        to_number(value)
    assert caught.value.nonfinite


def test_comma_is_named_as_ambiguous():
    with pytest.raises(NotANumber, match="a comma may be a decimal point or separate thousands"):
        to_number("4,5")


def test_further_texts_can_mean_not_measured():
    assert to_number("skipped", frozenset({"skipped"})) is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_text_of_a_number_is_the_number(number):
    assert to_number(repr(number)) == number == to_number(number)


def test_description_names_the_keys_of_a_struct():
    assert describe({"a": 1, "b": 2}) == "a struct with the keys a, b"
    assert describe([1]) == "a list of 1" and describe(None) == "null" and describe(True) == "a boolean"


def test_decimals_of_parquet_are_numbers():
    assert to_number(Decimal("4.50")) == 4.5

"""Values that name an outcome, and numbers for each of two responses."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dora_core.config.label_parts import TwoScores, disjoint, value_forms


def test_equal_values_share_a_form() -> None:
    assert value_forms(1) == value_forms("1.0") == frozenset({"1"}) and "1" in value_forms(True)
    assert value_forms(" Left ") == value_forms("left") and value_forms(None) != value_forms("null")


def test_a_value_has_one_meaning() -> None:
    disjoint({"a": [1, "one"], "b": [0]})
    with pytest.raises(ValueError, match=r"value '1' is under both `a` and `b`"):
        disjoint({"a": [True], "b": ["1"]})


def test_two_scores_are_of_a_and_b_or_of_chosen_and_rejected() -> None:
    assert TwoScores(chosen="x", rejected="y").paths == ("x", "y")
    with pytest.raises(ValidationError, match="give two paths"):
        TwoScores(a="x", rejected="y")

"""Values that name an outcome, numbers for each of two responses, and settings of votes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dora_core.config.adapter import Adapter, paths_of
from dora_core.config.label_parts import TwoScores, Votes, disjoint, value_forms

COUNTS = {"counts": {"a": "votes_a", "b": "votes_b"}}


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


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "either `counts` or `each`"),
        (COUNTS | {"each": "votes", "positive": "a"}, "either `counts` or `each`"),
        (COUNTS | {"positive": "b"}, "`counts` needs none of them"),
        ({"each": "votes"}, "say what a vote means"),
        ({"each": "votes", "positive": "a", "tie": ["same"]}, "say what a vote means"),
        ({"each": "votes", "a": ["x"]}, "`a` and `b` need values"),
        ({"each": "votes", "a": [1], "b": ["1"]}, "under both `a` and `b`"),
    ],
)
def test_contradictions_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Votes.model_validate(keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"shape": "list", "votes": COUNTS}, "shape is list"),
        ({"shape": "pair", "votes": COUNTS}, "names its votes {chosen, rejected}"),
        ({"shape": "ab", "votes": {"counts": {"chosen": "x", "rejected": "y"}}}, "names its votes {a, b}"),
        ({"shape": "ab", "votes": COUNTS, "columns": {"label_probability": "q"}}, "keep one of them"),
    ],
)
def test_an_adapter_refuses_votes_that_do_not_fit_its_other_keys(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Adapter.model_validate(keys)


def test_paths_are_among_those_that_an_adapter_reads() -> None:
    assert list(paths_of(Adapter.model_validate({"votes": COUNTS}))) == [("votes.counts", "votes_a"), ("votes.counts", "votes_b")]
    each = {"votes": {"each": "notes[].score", "positive": "b"}}
    assert list(paths_of(Adapter.model_validate(each))) == [("votes.each", "notes[].score")]


def test_an_adapter_without_votes_has_the_dump_of_earlier_releases() -> None:
    assert "votes" not in Adapter().model_dump()
    assert Adapter.model_validate({"votes": COUNTS}).model_dump(exclude_unset=True) == {"votes": COUNTS}

"""Groups of records by a carried column: values, quantile bins of numbers and times, rare values together."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from dora_core.config.method import EvaluateConfig, Grouping
from dora_core.evaluation.groups import NAME_CHARS, RowGroups, group_rows


def grouped(values: list[Any], column: str = "c", **options: Any) -> RowGroups:
    return group_rows([json.dumps({"c": value}) for value in values], Grouping(column=column, **options))


def test_texts_truth_values_and_lists_are_groups_by_value() -> None:
    found = grouped(["ann", "bob", "bob", None, True, ["bob"], [], ["ann", "bob"], ""])
    assert found.name_R.tolist() == ["ann", "bob", "bob", None, "true", "bob", None, '["ann", "bob"]', None]
    assert found.order == ("bob", '["ann", "bob"]', "ann", "true"), "by size, then by name"


def test_a_record_without_carried_columns_has_no_group() -> None:
    assert group_rows([None, "{}"], Grouping(column="c")).name_R.tolist() == [None, None]


def test_rare_values_are_together_and_counted() -> None:
    found = grouped([*"aaabbcd"], most=2)
    assert found.name_R.tolist() == ["a", "a", "a", "b", "b", "other (2 values)", "other (2 values)"] and found.merged == 2
    assert found.order == ("a", "b", "other (2 values)")


def test_many_numbers_are_quantile_bins() -> None:
    """10 numbers in 2 bins: edges are the smallest, the 5th (inverted cdf at ½) and the largest number."""
    found = grouped([*range(10)], bins=2, most=3)
    assert found.order == ("[0, 4)", "[4, 9]")
    assert found.name_R.tolist() == ["[0, 4)"] * 4 + ["[4, 9]"] * 6
    assert grouped([3, 3.0, 4, None]).name_R.tolist() == ["3", "3", "4", None], "few values are groups by value"
    ids = grouped([*range(10)], bins=None, most=3)
    assert ids.order == ("0", "1", "2", "other (7 values)"), "ids are no quantities"


def test_equal_numbers_share_a_bin_and_close_edges_differ_in_their_text() -> None:
    found = grouped([0] * 50 + [1, 2, 3, 4], bins=4, most=2)
    assert found.order == ("[0, 4]",), "three quarters of the numbers are 0, so all inner edges are 0"
    close = grouped([1.0001 + 0.0001 * i for i in range(8)], bins=2, most=3)
    assert close.order == ("[1.0001, 1.0004)", "[1.0004, 1.0008]")


def test_times_are_binned_as_numbers_are() -> None:
    days = [f"2024-01-{day:02d}T10:00:00" for day in range(1, 11)]
    assert grouped(days, bins=2, most=3).order == ("[2024-01-01, 2024-01-05)", "[2024-01-05, 2024-01-10]")
    minutes = [f"2024-01-01 10:{minute:02d}:00+00:00" for minute in range(10)]
    assert grouped(minutes, bins=2, most=3).order == ("[2024-01-01 10:00, 2024-01-01 10:04)", "[2024-01-01 10:04, 2024-01-01 10:09]")


def test_paths_lead_into_carried_columns_and_a_whole_name_wins() -> None:
    extras = [json.dumps({"info": {"site": "a"}, "info.id": 3, '"x.y"': "q", "marks[].by": ["n"]})]
    for column, name in (("info.site", "a"), ("info.id", "3"), ("x.y", "q"), ("marks[].by", "n"), ("info.nothing", None), ("no", None)):
        assert group_rows(extras, Grouping(column=column)).name_R.tolist() == [name], column


def test_long_values_keep_their_beginning_and_differ() -> None:
    one, other = grouped(["x" * 100 + "a", "x" * 100 + "b"]).name_R
    assert one != other and len(one) <= NAME_CHARS and one.startswith("x" * 50)


def test_settings() -> None:
    found = EvaluateConfig.model_validate({"groups": ["annotator", {"column": "margin", "bins": 3}]})
    assert [(grouping.column, grouping.bins) for grouping in found.groups] == [("annotator", 5), ("margin", 3)]
    assert "groups" not in EvaluateConfig().model_dump(), "configurations without it keep their digest"
    with pytest.raises(ValidationError, match="annotator is there twice"):
        EvaluateConfig.model_validate({"groups": ["annotator", {"column": "annotator"}]})
    with pytest.raises(ValidationError, match="not a path"):
        EvaluateConfig.model_validate({"groups": ["a..b"]})

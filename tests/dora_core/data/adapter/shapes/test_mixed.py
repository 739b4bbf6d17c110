"""Shape mixed: rows with a list, rows with a pair, and rows with both, whose numbers must agree."""

from __future__ import annotations

import pytest

from tests.dora_core.data.adapter.reading import assert_case, read_rows, says
from tests.dora_core.data.cases import CASES

BOTH = {"prompt": "q", "responses": ["x", "y", "z"], "chosen": "y", "rejected": "z"}


@pytest.mark.parametrize("name", ["list_beside_a_pair", "forms_mixed"])
def test_file_with_both_forms_is_read_right(name):
    assert assert_case(CASES[name]()).resolved.shape == "mixed"


def test_list_without_numbers_gets_the_preference_of_the_pair():
    read = read_rows([BOTH])
    assert says(read.rows[0][0]).answers == {"x": None, "y": 1.0, "z": 0.0}
    assert read.notes["lists whose preference is their pair"] == 1


def test_numbers_that_agree_with_the_pair_are_kept_and_others_refuse_the_row():
    read = read_rows([{**BOTH, "rewards": [0, 3, 2]}, {**BOTH, "rewards": [0, 2, 3]}, {**BOTH, "rewards": [0, None, 3]}])
    assert says(read.rows[0][0]).answers == {"x": 0.0, "y": 3.0, "z": 2.0}
    assert [read.problems[i][0].reason for i in (1, 2)] == ["score_contradicts_label"] * 2
    assert "set `shape: pair` or `shape: list`" in read.problems[1][0].detail


def test_pair_that_is_not_in_the_list_is_refused():
    (problem,) = read_rows([{**BOTH, "chosen": "another"}]).problems[0]
    assert problem.reason == "mixed_forms" and problem.detail.startswith("chosen and rejected are not two of responses")

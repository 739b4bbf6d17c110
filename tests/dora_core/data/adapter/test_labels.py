"""Labels: named values, annotations that disagree, weighted scores, ranks with a base."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dora_core.data.adapter.labels import based_rank
from dora_core.errors import DataError
from tests.dora_core.data.adapter.reading import NUMBERS, few, one, read_rows, says


@few
@given(st.lists(st.tuples(NUMBERS, NUMBERS | st.none()), min_size=2, max_size=4), st.tuples(NUMBERS, NUMBERS))
def test_weighted_scores_are_missing_where_any_is(marks, weights):
    assume(any(weights))
    row = {"prompt": "q", "responses": [f"r{i}" for i in range(len(marks))], "m": [{"x": x, "y": y} for x, y in marks]}
    keys = {"shape": "list", "label": {"scores": ["m[].x", "m[].y"], "weights": list(weights)}}
    try:
        found = says(one([row], keys)).answers
    except DataError:
        assert all(y is None for _, y in marks)
        return
    for i, (x, y) in enumerate(marks):
        wanted = None if y is None and weights[1] else weights[0] * x + (weights[1] * y if y is not None else 0.0)
        assert found[f"r{i}"] == (None if wanted is None else pytest.approx(wanted))


def test_value_that_is_not_named_is_refused_with_the_allowed_ones():
    keys = {
        "shape": "ab",
        "columns": {"prompt": "q", "a": "x", "b": "y"},
        "label": {"column": "w", "a": ["left"], "b": ["right"], "tie": ["tie"]},
    }
    read = read_rows([{"q": "?", "x": "1", "y": "2", "w": "LEFT "}, {"q": "?", "x": "1", "y": "2", "w": "middle"}], keys)
    assert says(read.rows[0][0]).answers == {"1": 1.0, "2": 0.0}
    assert (
        read.problems[1][0].detail
        == "is 'middle'; allowed: a: 'left'; b: 'right'; tie: 'tie'; add it to `label.a`, `label.b` or `label.tie`"
    )


@few
@given(st.lists(st.sampled_from(["left", "right", None]), max_size=3))
def test_several_annotations_count_if_they_agree(selected):
    row = {"q": "?", "x": "1", "y": "2", "notes": [{"pick": pick} for pick in selected]}
    keys = {
        "shape": "ab",
        "columns": {"prompt": "q", "a": "x", "b": "y"},
        "label": {"column": "notes[].pick", "a": ["left"], "b": ["right"]},
    }
    sure = {"q": "?", "x": "1", "y": "2", "notes": [{"pick": "left"}]}
    read = read_rows([row, sure], keys)
    named = {pick for pick in selected if pick}
    if len(named) == 2:
        assert read.problems[0][0].reason == "unknown_label"
    else:
        wanted = {"1": None, "2": None} if not named else {"1": 1.0, "2": 0.0} if named == {"left"} else {"1": 0.0, "2": 1.0}
        assert says(read.rows[0][0]).answers == wanted


@pytest.mark.parametrize(("rank", "base", "expected"), [(1.0, 1, 1.0), (0.0, 0, 1.0), (3.0, 0, 4.0), (None, 1, None)])
def test_ranks_are_counted_from_one(rank, base, expected):
    problems = []
    assert based_rank(rank, base, "rank", problems) == expected and problems == []


def test_rank_below_the_best_one_is_refused():
    problems = []
    assert based_rank(0.0, 1, "rank", problems) is None
    assert problems[0].detail == "rank 0 is below the best rank 1; see `base`"


def test_struct_of_scores_names_the_lines_that_choose_or_weigh_them():
    row = {"prompt": "q", "responses": ["x", "y"], "m": [{"help": 1, "safe": 2}, {"help": 0, "safe": 1}]}
    (problem, *_) = read_rows([row], {"shape": "list", "label": {"scores": ["m"]}}).problems[0]
    assert 'label: {scores: ["m[].help"]}' in problem.detail and '["m[].help", "m[].safe"] with `weights`' in problem.detail


def test_annotations_that_are_withdrawn_do_not_count():
    """Argilla's export: values with a status inside each, or beside them in a list of its own."""
    given = {"prompt": "q", "x": "good", "y": "bad"}
    inside = {**given, "choice": [{"value": "x", "status": "submitted"}, {"value": "y", "status": "discarded"}]}
    beside = {**given, "choice.responses": ["x", "y"], "choice.responses.status": ["submitted", "draft"]}
    base = {"shape": "ab", "columns": {"a": "x", "b": "y"}}
    for row, column in ((inside, "choice[].value"), (beside, "choice.responses")):
        read = read_rows([row], {**base, "label": {"column": column, "a": ["x"], "b": ["y"]}})
        assert read.rows[0][0].fields["chosen"] == "good"
        assert read.notes["annotations that were cancelled or discarded, not counted"] == 1
    votes = {"each": "choice[].value", "a": ["x"], "b": ["y"], "prior": 0}
    assert read_rows([inside], {**base, "votes": votes}).rows[0][0].fields["label_probability"] == 1.0, "one vote of one"
    withdrawn = {**given, "choice": [{"value": "y", "status": "discarded"}]}
    assert read_rows([withdrawn], {**base, "label": {"column": "choice[].value", "a": ["x"], "b": ["y"]}}).rows[0][0].fields["rewards"] == [
        None,
        None,
    ], "not measured"


@pytest.mark.parametrize(("rating", "rewards"), [(1, (1.0, 0.0)), (3.5, (0.5, 0.5)), (4, (0.5, 0.5)), ("7", (0.0, 1.0))])
def test_a_scale_has_its_middle(rating, rewards):
    """1 to 7 about 4, with a band of half a step: 3.5 is 0.5 below the middle and still neither."""
    label = {"column": "rating", "positive": "b", "zero": 4, "tie_band": 0.5}
    (row,) = read_rows(
        [{"prompt": "q", "x": "one", "y": "two", "rating": rating}], {"shape": "ab", "columns": {"a": "x", "b": "y"}, "label": label}
    ).rows[0]
    first, second = rewards
    if first == second:
        assert row.fields["rewards"] == [0.5, 0.5]
    else:
        assert row.fields["chosen"] == ("one" if first > second else "two")

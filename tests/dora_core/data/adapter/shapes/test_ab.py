"""Shape ab: the label decides which response is better, and sources go with their responses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.dora_core.data.adapter.reading import NUMBERS, WORDS, few, one, read_rows, says


@few
@given(
    st.sampled_from([("a", "b", "tie"), (1, 0, 2), (True, False, "tie"), ("1", "2", "0"), (1.0, 2.0, 1.5), ("model_a", "model_b", None)]),
    st.integers(0, 2),
    st.booleans(),
)
def test_named_winner_decides(values, which, as_text):
    label = {"column": "w", "a": values[0], "b": [values[1]], "tie": [values[2]]}
    value = values[which]
    value = str(value) if as_text and value is not None else value
    row = {"q": "?", "x": "first", "y": "second", "w": value}
    found = says(one([row], {"shape": "ab", "columns": {"prompt": "q", "a": "x", "b": "y"}, "label": label})).answers
    assert (found["first"] > found["second"], found["first"] < found["second"]) == (which == 0, which == 1)


@few
@given(NUMBERS, st.sampled_from(["a", "b"]), st.floats(0, 3))
def test_signed_number_decides(number, positive, band):
    label = {"column": "w", "positive": positive, "tie_band": band}
    row = {"q": "?", "x": "first", "y": "second", "w": number}
    found = says(one([row], {"shape": "ab", "columns": {"prompt": "q", "a": "x", "b": "y"}, "label": label})).answers
    sign = 0 if abs(number) <= band else (1 if number > 0 else -1) * (1 if positive == "a" else -1)
    assert (found["first"] > found["second"]) - (found["first"] < found["second"]) == sign


@few
@given(st.none() | WORDS.filter(str.isprintable), st.none() | WORDS.filter(str.isprintable), st.booleans())
def test_sources_go_with_their_responses(one_source, other_source, a_wins):
    keys = {
        "shape": "ab",
        "columns": {"prompt": "q", "a": "x", "b": "y", "a_source": "mx", "b_source": "my"},
        "label": {"column": "w", "a": [1], "b": [2]},
    }
    found = says(one([{"q": "?", "x": "first", "y": "second", "mx": one_source, "my": other_source, "w": 1 if a_wins else 2}], keys))
    wanted = {text: source for text, source in (("first", one_source), ("second", other_source)) if source is not None}
    assert (found.sources or {}) == wanted


def test_a_preference_between_equal_responses_is_refused_and_a_tie_is_kept():
    keys = {"shape": "ab", "columns": {"prompt": "q", "a": "x", "b": "y"}, "label": {"column": "w", "a": [1], "b": [2], "tie": [0]}}
    read = read_rows([{"q": "?", "x": "same", "y": "same", "w": winner} for winner in (1, 0)], keys)
    (problem,) = read.problems[0]
    assert (problem.reason, problem.field) == ("identical_pair", "y")
    assert read.rows[1][0].form == "listwise" and read.rows[1][0].fields["rewards"] == [0.5, 0.5]

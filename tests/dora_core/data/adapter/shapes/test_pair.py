"""Shape pair: scores beside the pair, exact texts, paths that lead nowhere."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dora_core.errors import ConfigError, DataError
from tests.dora_core.data.adapter.reading import NUMBERS, assert_same, few, one, read_rows, says
from tests.dora_core.data.cases import Truth, user


@few
@given(NUMBERS | st.none(), NUMBERS | st.none(), st.booleans())
def test_scores_beside_a_pair_are_its_rewards(high, low, decide):
    label = {"scores": [{"chosen": "sc", "rejected": "sr"}], "contradiction": "scores" if decide else "refuse"}
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "sc": high, "sr": low}
    read = read_rows([row, {**row, "sc": 2, "sr": 1}], {"shape": "pair", "label": label})
    if high is not None and low is not None and high < low and not decide:
        assert read.problems[0][0].reason == "score_contradicts_label"
        return
    known = high is not None and low is not None
    assert_same(says(read.rows[0][0]), Truth([user("q")], {"a": high if known else 1.0, "b": low if known else 0.0}))


def test_path_that_leads_nowhere_names_the_keys_there():
    rows = [{"prompt": "q", "chosen": {"txt": "a"}, "rejected": {"txt": "b"}}]
    with pytest.raises(DataError, match="chosen has no key text; keys there: txt"):
        read_rows(rows, {"shape": "pair", "columns": {"chosen": "chosen.text", "rejected": "rejected.txt"}})


@few
@given(st.text(max_size=60).filter(lambda text: text.strip()), st.text(max_size=60).filter(lambda text: text.strip()))
def test_texts_are_kept_exactly(good, bad):
    assume(good != bad)
    read = read_rows([{"prompt": "q", "chosen": good, "rejected": bad}])
    for row in read.rows.get(0, []):
        assert (row.fields["chosen"], row.fields["rejected"]) == (good, bad)
    if not read.rows:
        assert {str(p.reason) for p in read.problems[0]} <= {"templated_text", "structured_text", "wrong_type", "unknown_role"}


def test_the_probability_of_a_label_is_read_only_where_it_is_mapped_and_is_a_probability():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "label_probability": 0.7, "votes": "0.75"}
    assert "label_probability" not in read_rows([row]).rows[0][0].fields
    columns = {"columns": {"label_probability": "votes"}}
    assert read_rows([row], columns).rows[0][0].fields["label_probability"] == 0.75
    assert read_rows([row | {"votes": None}, row], columns).rows[0][0].fields["label_probability"] is None
    (found,) = read_rows([row, row | {"votes": 1.2}], columns).problems[1]
    assert (found.field, found.detail) == ("votes", "is 1.2, expected a probability from 0 to 1")


def test_several_preferred_and_rejected_responses_are_a_list():
    row = {"prompt": "q", "chosen": "a", "rejected": ["b", "c"], "m": ["x", "y"]}
    keys = {"columns": {"rejected": "rejected[]", "rejected_source": "m[]"}}
    found = one([row], keys).fields
    assert (found["responses"], found["rewards"], found["sources"]) == (["a", "b", "c"], [1.0, 0.0, 0.0], [None, "x", "y"])
    (problems,) = read_rows([{**row, "rejected": ["a", "c"]}], keys).problems.values()
    assert [str(problem.reason) for problem in problems] == ["identical_pair"]
    (problems,) = read_rows([{**row, "rejected": []}], keys).problems.values()
    assert [str(problem.reason) for problem in problems] == ["missing_response"]


def test_scores_of_two_are_not_read_for_several():
    keys = {"columns": {"rejected": "rejected[]"}, "label": {"scores": [{"chosen": "s", "rejected": "t"}]}}
    with pytest.raises(ConfigError, match="give several"):
        read_rows([{"prompt": "q", "chosen": "a", "rejected": ["b"], "s": 1, "t": 0}], {"shape": "pair", **keys})

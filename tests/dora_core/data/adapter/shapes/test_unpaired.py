"""Shape unpaired: feedback on one response that is read, skipped or refused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.dora_core.data.adapter.reading import assert_case, few, read_rows
from tests.dora_core.data.cases import CASES


@few
@given(st.lists(st.sampled_from(["up", "down", None, "later", "meh"]), min_size=1, max_size=8))
def test_feedback_is_read_skipped_or_refused(thumbs):
    label = {"column": "thumb", "true": ["up"], "false": ["down"], "skip": [None, "later"]}
    rows = [{"prompt": f"q{i}", "response": f"r{i}", "thumb": thumb} for i, thumb in enumerate(thumbs)]
    read = read_rows(rows, {"shape": "unpaired", "label": label})
    for i, thumb in enumerate(thumbs):
        if thumb in ("up", "down"):
            assert read.rows[i][0].fields["label"] is (thumb == "up")
        else:
            assert i not in read.rows and (i in read.problems) == (thumb == "meh")
    assert read.notes["rows without feedback, left out"] == sum(thumb in (None, "later") for thumb in thumbs)


def test_feedback_without_a_response_is_refused():
    label = {"column": "ok", "true": [True], "false": [False]}
    rows = [{"prompt": "q", "response": "r", "ok": True}, {"prompt": "q", "response": None, "ok": True}]
    read = read_rows(rows, {"shape": "unpaired", "label": label})
    assert read.rows[0][0].form == "unpaired" and read.problems[1][0].reason == "missing_response"


def test_schema_with_one_approval_per_row_is_read_right():
    assert assert_case(CASES["thumbs"]()).resolved.shape == "unpaired"

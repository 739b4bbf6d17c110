"""Marks of rows, messages and annotations that do not count."""

from __future__ import annotations

import pytest

from dora_core.data.withdrawn import is_withdrawn, marks_in, may_mark_rows


@pytest.mark.parametrize("item", [{"was_cancelled": True}, {"deleted": True, "text": "x"}, {"status": "Discarded"}, {"status": "draft"}])
def test_marked_items_are_withdrawn(item):
    assert is_withdrawn(item)


@pytest.mark.parametrize("item", [{"was_cancelled": False}, {"deleted": None}, {"status": "submitted"}, {"status": 1}, {}, "deleted", None])
def test_other_items_count(item):
    assert not is_withdrawn(item)


@pytest.mark.parametrize(
    ("column", "values", "marks"),
    [
        ("is_deleted", [False, True, True], [True]),
        ("was_cancelled", [0, 1], [1]),
        ("spam", ["no", "Yes"], ["Yes"]),
        ("is_valid", ["True", "False"], ["False"]),
        ("status", ["submitted", "discarded", "Rejected"], ["discarded", "Rejected"]),
        ("status", ["tie", "unchanged"], []),
        ("note", ["deleted"], []),
        ("deleted_at", ["2024"], []),
    ],
)
def test_values_that_mark_a_row(column, values, marks):
    assert marks_in(column, values) == marks
    assert may_mark_rows(column) == (column not in ("note", "deleted_at"))

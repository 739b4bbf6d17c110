"""Models of a preview: words for a bad row, findings with their rows, and the verdict."""

from __future__ import annotations

import pytest

from dora_core.data.previewed import BadRow, Estimate, FindingShown, InputPreview, Preview
from dora_core.data.record_counts import RecordCounts
from dora_core.data.suspicion import Example, Finding

FACTORS = Estimate(needed=True, possible=False, why="one source alone")


def test_a_bad_row_in_words() -> None:
    assert BadRow(file="a.jsonl", row=3, reason="media", text="images: leave the row out").in_words() == (
        "row 3 of a.jsonl: images: leave the row out"
    )


def test_a_finding_is_shown_with_its_rows() -> None:
    found = Finding("tied_scores", "note", 2, "2 of 5 records express no preference", "map the score", (Example("a", 0), Example("a", 4)))
    shown = FindingShown.of(found)
    assert (shown.rule, shown.level, shown.count, shown.hint) == ("tied_scores", "note", 2, "map the score")
    assert "a:0, a:4" in shown.text and shown.text.startswith("2 of 5 records")


@pytest.mark.parametrize(("refusals", "accepted"), [([], True), (["no source"], False)])
def test_data_is_accepted_where_nothing_refuses_it(refusals: list[str], accepted: bool) -> None:
    preview = Preview(inputs=[], total=RecordCounts(), factors=FACTORS, refusals=refusals, warnings=["few rows"])
    assert preview.accepted is accepted and Preview.model_validate_json(preview.model_dump_json()) == preview


def test_an_input_that_was_not_read_has_no_counts() -> None:
    item = InputPreview(place="data.train[0]", path="a", content="train", refused="no such file", hint="check the path")
    assert (item.rows, item.bad, item.shown, item.first_bad, item.counts) == (0, 0, [], None, RecordCounts())

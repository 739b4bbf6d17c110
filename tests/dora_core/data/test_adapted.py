"""Inputs of several files: one adapter per set of columns, rows with their places, late columns, and sources that must be named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dora_core.data.adapted import SAMPLE_ROWS, AdaptedInput
from dora_core.data.adapter.canonical import CanonicalRow
from dora_core.errors import DataError
from tests.dora_core.data.written_inputs import input_at, write_jsonl, write_parquet

PAIRS = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(3)]


def adapted(path: Path, **source: Any) -> AdaptedInput:
    return AdaptedInput(input_at(path, **{"source": "human"} | source), {})


def test_files_with_the_same_columns_share_one_adapter_and_others_have_their_own(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", PAIRS)
    write_jsonl(tmp_path / "b.jsonl", PAIRS[:1])
    write_jsonl(tmp_path / "c.jsonl", [{"prompt": "q", "responses": ["x", "y"], "rewards": [1, 0]}])
    found = adapted(tmp_path)
    assert [[Path(name).name for name in mapping.files] for mapping in found.mappings] == [["a.jsonl", "b.jsonl"], ["c.jsonl"]]
    assert [mapping.resolved.shape for mapping in found.mappings] == ["pair", "list"]
    rows = list(found.rows())
    assert [(Path(row.file).name, row.row) for row in rows] == [
        ("a.jsonl", 0),
        ("a.jsonl", 1),
        ("a.jsonl", 2),
        ("b.jsonl", 0),
        ("c.jsonl", 0),
    ]
    assert all(isinstance(row.value, CanonicalRow) for row in rows) and found.rows_read == 5


def test_fields_have_the_names_of_their_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"q": "p", "good": "x", "bad": "y"}])
    (row,) = adapted(tmp_path / "a.jsonl", columns={"prompt": "q", "chosen": "good", "rejected": "bad"}).rows()
    assert [row.column_of(name) for name in ("prompt", "responses[0]", "responses[1]")] == ["q", "good", "bad"]


def test_rows_beyond_the_bound_are_not_read(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", PAIRS)
    for most, cut in ((2, True), (3, False), (None, False)):
        found = AdaptedInput(input_at(path, source="human"), {}, most_rows=most)
        assert len(list(found.rows())) == (most or 3) == found.rows_read and found.is_cut is cut


def test_responses_without_a_source_are_refused_with_the_lines_that_help(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", PAIRS)
    with pytest.raises(DataError, match="does not name the sources of its responses") as caught:
        adapted(path, source=None)
    assert "set data.train[0].source: NAME for all rows, or data.train[0].columns.chosen_source and rejected_source" in caught.value.hint
    assert len(AdaptedInput(input_at(path, "golden"), {}).mappings) == 1, "trusted responses need no source"


def late(tmp_path: Path, value: Any) -> Path:
    rows = [{**PAIRS[0], "prompt": f"q{i}"} for i in range(SAMPLE_ROWS)]
    return write_jsonl(tmp_path / "a.jsonl", [*rows, {**PAIRS[0], "score_chosen": value}])


def test_a_late_column_that_needs_a_decision_names_its_row_and_the_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"row {SAMPLE_ROWS}: the first value of the column 'score_chosen'") as caught:
        list(adapted(late(tmp_path, 4.5)).rows())
    assert "(under data.train[0])" in caught.value.hint
    found = adapted(late(tmp_path, 4.5), ignore=["score_chosen"])
    assert len(list(found.rows())) == SAMPLE_ROWS + 1


def test_a_late_row_that_is_marked_as_withdrawn_names_its_row_and_the_line(tmp_path: Path) -> None:
    rows = [{**PAIRS[0], "prompt": f"q{i}", "is_deleted": i == SAMPLE_ROWS} for i in range(SAMPLE_ROWS + 2)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=f"row {SAMPLE_ROWS}: the first row that the column 'is_deleted'") as caught:
        list(adapted(path).rows())
    assert "`leave_out: {is_deleted: [true]}`" in caught.value.hint
    assert len(list(adapted(path, leave_out={"is_deleted": [True]}).rows())) == SAMPLE_ROWS + 1
    assert len(list(adapted(path, carry=["is_deleted"]).rows())) == SAMPLE_ROWS + 2


def test_rows_of_one_prompt_are_joined_over_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "q", "response": "x", "score": 1}])
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": "q", "response": "y", "score": 2, "note": None}])
    found = adapted(tmp_path, shape="rows", label={"scores": ["score"]})
    (mapping,) = found.mappings
    (row,) = found.rows()
    assert len(mapping.files) == 2 and Path(row.file).name == "a.jsonl" and row.row == 0
    assert isinstance(row.value, CanonicalRow) and row.value.fields["responses"] == ["x", "y"]


def test_a_column_that_is_there_twice_is_refused_if_a_record_may_need_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected,chosen\nq,a,b,c\n")
    with pytest.raises(DataError, match="column chosen is there twice") as caught:
        adapted(path)
    assert caught.value.hint == "keep one of them, or rename the other"
    path.write_text("prompt,chosen,rejected,note,note\nq,a,b,c,d\n")
    found = adapted(path)
    assert len(list(found.rows())) == 1 and any("column note is there twice, not read" in note for note in found.file_notes)


def test_parquet_and_json_lines_give_the_same_rows(tmp_path: Path) -> None:
    made = [write_jsonl(tmp_path / "a.jsonl", PAIRS), write_parquet(tmp_path / "a.parquet", PAIRS)]
    fields = [[row.value.fields for row in adapted(path).rows() if isinstance(row.value, CanonicalRow)] for path in made]
    assert json.dumps(fields[0]) == json.dumps(fields[1]) and len(fields[0]) == 3


# --------------------------------------------------------------------------------------- mapped columns that begin late


BEFORE = 1100
"""Rows before the column begins: more than the sample, and than the lines by which a JSON file's columns are known."""


def beginning_late(tmp_path: Path, late: dict[str, Any]) -> Path:
    rows = [{**PAIRS[0], "prompt": f"q{i}"} for i in range(BEFORE)]
    return write_jsonl(tmp_path / "a.jsonl", [*rows, {**PAIRS[0], "prompt": "last", **late}])


@pytest.mark.parametrize(
    ("late", "source", "field", "value"),
    [
        ({"w": 0.5}, {"columns": {"weight": "w"}}, "weight", 0.5),
        ({"kind": "math"}, {"columns": {"task": "kind"}}, "task", "math"),
        ({"meta": {"w": 0.5}}, {"columns": {"weight": "meta.w"}}, "weight", 0.5),
    ],
)
def test_a_mapped_column_that_begins_late_is_read(tmp_path: Path, late: dict[str, Any], source: Any, field: str, value: Any) -> None:
    found = adapted(beginning_late(tmp_path, late), **source)
    rows = [row.value for row in found.rows()]
    assert len(rows) == BEFORE + 1 and all(isinstance(row, CanonicalRow) for row in rows)
    given = [row.fields.get(field) for row in rows if isinstance(row, CanonicalRow)]
    assert given == [None] * BEFORE + [value]
    assert not any("not read" in note for note in found.notes)


def test_a_carried_column_that_begins_late_is_carried(tmp_path: Path) -> None:
    rows = list(adapted(beginning_late(tmp_path, {"note": "n"}), carry=["note"]).rows())
    assert isinstance(rows[-1].value, CanonicalRow) and "n" in str(rows[-1].value.fields["extra"])


def test_a_mapped_column_that_never_comes_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'wieght'; did you mean 'weight'"):
        adapted(beginning_late(tmp_path, {"weight": 1.0}), columns={"task": "wieght", "weight": "weight"})

"""JSON arrays, arrays inside an object, and JSON lines under ``.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dora_core.data.inputs import open_files
from dora_core.data.problems import Problem, Reason
from tests.dora_core.data.written_inputs import ROWS, input_at, read, refused


def written(tmp_path: Path, value: Any, **how: Any) -> Path:
    path = tmp_path / "a.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value, **how))
    return path


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("wrapped", [False, True])
def test_arrays_give_their_rows(tmp_path: Path, indent: int | None, wrapped: bool) -> None:
    path = written(tmp_path, {"version": "1", "tags": ["x"], "data": ROWS, "more": {"a": [1]}} if wrapped else ROWS, indent=indent)
    (file,) = open_files(input_at(path), {})
    assert list(file.rows()) == list(enumerate(ROWS)) and file.columns == list(ROWS[0])
    assert file.notes == ((f"{path}: its rows are in the field 'data'",) if wrapped else ())


def test_several_arrays_need_a_choice(tmp_path: Path) -> None:
    path = written(tmp_path, {"train": ROWS[:2], "test": ROWS[2:]})
    (file,) = open_files(input_at(path), {})
    assert len(list(file.rows())) == 2 and "left out: test" in file.notes[0]
    assert [row["id"] for _, row in read(path, split="test")] == ["2", "3", "4"]
    error = refused(written(tmp_path, {"a": ROWS[:2], "b": ROWS[2:]}))
    assert "several lists of rows: a, b" in error.message and "set data.train[0].split to one of them" in error.hint
    assert "has no splits" in refused(written(tmp_path, {"data": ROWS}), split="test").message
    assert "has no splits" in refused(written(tmp_path, ROWS), split="test").message


def test_json_lines_under_json_are_rows(tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, ROWS))
    assert [number for number, _ in read(written(tmp_path, "\n" + lines))] == [1, 2, 3, 4, 5]
    first, *rest = read(written(tmp_path, '{"prompt": \n' + lines))
    assert isinstance(first[1], Problem) and len(rest) == 5
    one_row = {"prompt": [{"role": "user", "content": "q"}], "responses": ["x", "y"], "sources": ["a", "b"]}
    assert len(read(written(tmp_path, one_row))) == 1, "messages are no rows"


def test_bad_rows_and_damage(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(ROWS)[:-1] + ', {"prompt": 1, "prompt": 2}, 7]')
    assert [row if not isinstance(row, dict) else row["id"] for _, row in read(path)][5:] == [
        Problem("", Reason.UNPARSABLE, "an object has the same key twice"),
        7,
    ]
    error = refused(written(tmp_path, json.dumps(ROWS)[:-10]))
    assert f"cannot read {tmp_path}/a.json: line 1" in error.message and "cut off" in error.hint
    assert "none of the first 1000 values of its array is an object" in refused(written(tmp_path, [1, 2])).message
    assert "holds the field 'data' twice" in refused(written(tmp_path, '{"data": [{"a": 1}], "data": [{"a": 2}]}')).message
    path.write_text(json.dumps(ROWS), encoding="utf-16")
    assert "UTF-16" in refused(path).message


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]},
        {"prompt": {"0": "a", "1": "b"}, "chosen": {"0": "c", "1": "d"}},
        {"0": {"prompt": "a", "chosen": "c"}, "1": {"prompt": "b", "chosen": "d"}},
        {"id0": {"prompt": "a", "chosen": "c"}, "id1": {"prompt": "b", "chosen": "d", "note": "only here"}},
        {"columns": ["prompt", "chosen"], "index": [0], "data": [["a", "c"]]},
    ],
)
def test_table_by_columns_or_index_is_refused_with_the_export_that_is_read(tmp_path: Path, document: dict[str, Any]) -> None:
    for indent in (None, 2):
        error = refused(written(tmp_path, document, indent=indent))
        assert "by its columns or index" in error.message and "orient='records'" in error.hint

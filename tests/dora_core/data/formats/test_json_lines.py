"""JSON lines, plain and compressed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from dora_core.data.inputs import open_files
from dora_core.data.problems import Problem, Reason
from dora_core.data.row_views import count_rows
from tests.dora_core.data.written_inputs import ROWS, input_at, read, refused, write_jsonl


def test_plain_and_compressed_files_give_the_same_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    compressed = tmp_path / "a.jsonl.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(path) == read(compressed) == list(enumerate(ROWS))


def test_a_field_that_first_appears_late_is_not_lost(tmp_path: Path) -> None:
    rows = [{k: v for k, v in ROWS[0].items() if k != "rewards"}] * 1200 + [ROWS[0]]
    assert read(write_jsonl(tmp_path / "a.jsonl", rows))[-1][1]["rewards"] == [1.0, 0.0]


def test_unreadable_lines_are_problems_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(ROWS[0]).encode(), b"", b'{"prompt": ', b'"\xff"', b"[" * 100_000, b"9" * 5000, json.dumps("\ud800").encode()]
    path.write_bytes(b"\n".join(lines))
    found = read(path)
    assert [number for number, _ in found] == [0, 2, 3, 4, 5, 6]
    assert [row.reason if isinstance(row, Problem) else row for _, row in found[1:]] == [Reason.UNPARSABLE] * 4 + ["\ud800"]


def test_a_key_that_occurs_twice_is_a_problem_and_not_the_last_value(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS[:1])
    path.write_text(path.read_text() + '{"prompt": "a", "prompt": "b"}\n')
    assert read(path)[1] == (1, Problem("", Reason.UNPARSABLE, "an object has the same key twice"))


def test_other_encodings_and_documents_are_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]), encoding="utf-16")
    error = refused(tmp_path / "a.jsonl")
    assert "is UTF-16; text files are read as UTF-8" in error.message and "iconv -f UTF-16" in error.hint
    (tmp_path / "b.json").write_text(json.dumps(ROWS))
    error = refused(tmp_path / "b.json", format="jsonl")
    assert "is a JSON array, not JSON lines" in error.message and error.hint == "set format: json"
    (tmp_path / "c.jsonl").write_text(json.dumps({"data": ROWS}, indent=1))
    assert "set format: json if the file is one JSON document" in refused(tmp_path / "c.jsonl").hint


def test_another_format_is_named_with_the_line_to_write(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\np,x,y\n")
    error = refused(tmp_path / "a.csv", format="jsonl")
    assert error.message == f"{tmp_path}/a.csv is not a JSONL file: it looks like CSV (columns prompt, chosen, rejected)"
    assert error.hint == "set data.train[0].format: csv"


def test_whole_rows_and_counts(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "meta": {"a": 1}}] * 1200 + [{"late": True}])
    (file,) = open_files(input_at(path), {})
    assert list(file.rows())[-1] == (1200, {"late": True}) and "late" not in file.columns
    assert count_rows(file.reader) == 1201


@pytest.mark.parametrize(
    ("line", "found", "hint"),
    [
        ('{"prompt": "für"}'.encode("latin-1"), "not UTF-8 at byte", "iconv"),
        (b'{"prompt": "a", "prompt": "b"}', "the same key twice", "keep one"),
    ],
)
def test_file_without_any_good_line_says_what_is_wrong_with_the_first(tmp_path: Path, line: bytes, found: str, hint: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(line + b"\n")
    error = refused(tmp_path / "a.jsonl")
    assert found in error.message and hint in error.hint

"""CSV and TSV."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dora_core.data.inputs import open_files
from dora_core.data.problems import Problem, Reason
from tests.dora_core.data.written_inputs import input_at, read, refused

BAD_BYTES = "not UTF-8; leave the row out, or convert the file: iconv -f CP1252 -t UTF-8 FILE > NEW_FILE (or from its encoding)"


def written(tmp_path: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path: Path, **options: str) -> list[tuple[int, object]]:
    return [row for file in open_files(input_at(path, **options), {}) for row in file.rows()]


def test_values_stay_text_and_positions_are_lines(tmp_path: Path) -> None:
    path = written(tmp_path, '\ufeffid,q,score\n007,"a, ""b""\nc",1e3\n\n008,,4.50\n')
    assert rows(path) == [(1, {"id": "007", "q": 'a, "b"\nc', "score": "1e3"}), (4, {"id": "008", "q": None, "score": "4.50"})]
    (file,) = open_files(input_at(path), {})
    assert {str(kind) for kind in file.types.values()} == {"string"} and file.notes == ()


@pytest.mark.parametrize(
    ("name", "delimiter", "note"),
    [("a.csv", ",", ""), ("a.csv", ";", "semicolons"), ("a.csv", "\t", "tabs"), ("a.csv", "|", "bars"), ("a.tsv", "\t", "")],
)
def test_the_delimiter_is_that_of_the_header(tmp_path: Path, name: str, delimiter: str, note: str) -> None:
    path = written(
        tmp_path,
        delimiter.join(["prompt", "chosen", "rejected"]) + "\n" + delimiter.join(["p; ,", "x", "y"]).replace("p; ,", '"p; ,"') + "\n",
        name,
    )
    (file,) = open_files(input_at(path), {})
    assert list(file.rows()) == [(1, {"prompt": "p; ,", "chosen": "x", "rejected": "y"})]
    assert note in " ".join(file.notes) and bool(file.notes) == bool(note)


def test_a_bad_row_costs_itself_and_a_bad_quote_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, b"prompt,chosen,rejected\na,x\nb,\xff,y\nc,x,y\n")
    assert rows(path) == [
        (1, Problem("", Reason.UNPARSABLE, "2 fields, the header has 3")),
        (2, Problem("", Reason.UNPARSABLE, BAD_BYTES)),
        (3, {"prompt": "c", "chosen": "x", "rejected": "y"}),
    ]
    error = refused(written(tmp_path, 'prompt,chosen,rejected\na,"x" y,z\n'), source="m")
    assert f"cannot read {tmp_path}/a.csv: line 2" in error.message and "in quotes" in error.hint
    assert "unexpected end of data" in refused(written(tmp_path, 'prompt,chosen,rejected\na,"x,z\n'), source="m").message


def test_a_long_text_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "chosen", "rejected"], ["p", "x" * 1_000_000, "y"]])
    ((_, row),) = read(tmp_path / "a.csv", source="m")
    assert len(row["chosen"]) == 1_000_000


def test_what_is_not_a_table_is_refused(tmp_path: Path) -> None:
    assert "looks like JSON lines" in refused(written(tmp_path, '{"prompt": 1}\n{"prompt": 2}\n')).message
    assert "does not begin with a header" in refused(written(tmp_path, b"\0\0\0\1")).message
    assert "UTF-16" in refused(written(tmp_path, "a,b\n".encode("utf-16"))).message
    error = refused(written(tmp_path, "prompt,réponse\n".encode("latin-1")))
    assert "header is not UTF-8" in error.message and "iconv" in error.hint
    assert rows(written(tmp_path, "")) == [] and rows(written(tmp_path, "a,b\n")) == []

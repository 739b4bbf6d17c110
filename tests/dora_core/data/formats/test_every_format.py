"""Properties of all formats: a table reads back to its rows, and a damaged file gives rows or a refusal, never a traceback."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dora_core.data.inputs import fingerprint_inputs, open_files
from dora_core.errors import DataError
from tests.dora_core.data.written_inputs import input_at

Rows = list[dict[str, Any]]


def write_csv(path: Path, rows: Rows, **how: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, **how)
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)


def write_arrow(path: Path, rows: Rows) -> None:
    table = pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file)(path, table.schema) as writer:
        writer.write_table(table)


def write_sqlite(path: Path, rows: Rows) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TABLE t ({', '.join(rows[0])})")
        connection.executemany(f"INSERT INTO t VALUES ({', '.join('?' * len(rows[0]))})", [tuple(row.values()) for row in rows])
        connection.commit()


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


WRITERS: dict[str, Callable[[Path, Rows], Any]] = {
    "a.jsonl": lambda path, rows: path.write_bytes(lines(rows)),
    "lines.json": lambda path, rows: path.write_bytes(lines(rows)),
    "array.json": lambda path, rows: path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8"),
    "pretty.json": lambda path, rows: path.write_text(json.dumps(rows, indent=2)),
    "wrapped.json": lambda path, rows: path.write_text(json.dumps({"n": 1, "rows": rows, "about": {"x": [1]}})),
    "a.csv": write_csv,
    "semicolons.csv": lambda path, rows: write_csv(path, rows, delimiter=";"),
    "a.tsv": lambda path, rows: write_csv(path, rows, delimiter="\t", quoting=csv.QUOTE_ALL),
    "a.parquet": lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path),
    "a.arrow": write_arrow,
    "a.feather": write_arrow,
    "a.sqlite": write_sqlite,
    "a.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(lines(rows))),
    "a.jsonl.bz2": lambda path, rows: path.write_bytes(bz2.compress(lines(rows))),
    "a.jsonl.xz": lambda path, rows: path.write_bytes(lzma.compress(lines(rows))),
    "a.jsonl.zst": lambda path, rows: path.write_bytes(pa.compress(lines(rows), "zstd", asbytes=True)),
}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20) | st.sampled_from(
    ["007", "1e3", "true", "null", "NaN", '"', 'say "hi", you', "a\nb", "a\r\nb", "\t", "2024-01-01", "{", "[1]", " x "]
)
COLUMNS = ("prompt", "chosen", "rejected")
TABLES = st.lists(st.tuples(TEXT, TEXT, TEXT).map(lambda values: dict(zip(COLUMNS, values, strict=True))), min_size=1, max_size=5)


def rows_of(path: Path, **options: Any) -> list[Any]:
    item = input_at(path, **options)
    fingerprint_inputs([item])
    return [row for file in open_files(item, {}) for _, row in file.rows(batch_rows=2)]


@settings(max_examples=60, deadline=None)
@given(rows=TABLES)
def test_a_table_reads_back_to_its_rows_from_every_format(rows: Rows) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, write in WRITERS.items():
            write(Path(folder) / name, rows)
            assert rows_of(Path(folder) / name) == rows, name


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_gives_rows_or_a_refusal(name: str, data: st.DataObject) -> None:
    rows = [{"prompt": f"p{i}", "chosen": "x" * i, "rejected": "né"} for i in range(1, 6)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        WRITERS[name](path, rows)
        content = bytearray(path.read_bytes())
        kind = data.draw(st.sampled_from(["cut", "flip", "insert", "empty"]))
        place = data.draw(st.integers(0, len(content) - 1))
        if kind == "cut":
            content = content[:place]
        elif kind == "flip":
            content[place] ^= data.draw(st.integers(1, 255))
        elif kind == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            content = bytearray()
        path.write_bytes(content)
        try:
            found = rows_of(path)
        except DataError as error:
            assert str(path) in error.message and error.hint
        else:
            assert len(found) <= 40


def test_every_format_reads_every_other_only_by_refusing_it(tmp_path: Path) -> None:
    """A wrong `format` names the right one, or at least the file; never rows of another meaning."""
    rows = [{"prompt": f"p{i}", "chosen": "x", "rejected": "y"} for i in range(3)]
    right = {"a.jsonl": "jsonl", "array.json": "json", "a.csv": "csv", "a.parquet": "parquet", "a.feather": "arrow", "a.sqlite": "sqlite"}
    for name, format in right.items():
        WRITERS[name](tmp_path / name, rows)
        for other in set(right.values()) - {format}:
            if (format, other) == ("jsonl", "json"):
                assert rows_of(tmp_path / name, format=other) == rows  # a JSON file may hold lines
                continue
            with pytest.raises(DataError) as caught:
                rows_of(tmp_path / name, format=other)
            assert f"format: {format}" in caught.value.hint, (name, other, str(caught.value))


def test_a_stream_of_many_rows_is_read_in_flat_memory(tmp_path: Path) -> None:
    """An array of 40 MB is read with a few MB at a time."""
    import tracemalloc

    row = {"prompt": "p" * 1000, "answers": [{"text": "x" * 1000, "score": 1}] * 4}
    with (tmp_path / "a.json").open("w") as file:
        file.write('{"rows": [' + ",".join([json.dumps(row)] * 8000) + "]}")
    (opened,) = open_files(input_at(tmp_path / "a.json"), {})
    tracemalloc.start()
    count = sum(1 for _ in opened.rows())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 8000 and peak < 4_000_000

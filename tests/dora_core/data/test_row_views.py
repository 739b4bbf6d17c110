"""Slices and partitions in front of a reader."""

from __future__ import annotations

from pathlib import Path

from dora_core.data.inputs import open_files
from dora_core.data.problems import Problem
from dora_core.data.row_views import PartitionedReader, SlicedReader, count_rows
from tests.dora_core.data.written_inputs import ROWS, input_at, write_jsonl, write_parquet


def test_a_slice_keeps_positions(tmp_path: Path) -> None:
    (file,) = open_files(input_at(write_parquet(tmp_path / "a.parquet", ROWS)), {})
    sliced = SlicedReader(file.reader, 1, 3)
    assert list(sliced.rows({"n": "id"}, 2)) == [(1, {"n": "1"}), (2, {"n": "2"})]
    assert (count_rows(sliced), count_rows(file.reader), sliced.columns) == (2, 5, file.columns)


def test_partitions_are_columns_and_must_agree_with_the_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": "a", "lang": "en"}, {"q": "b", "lang": "de"}, {"q": "c", "lang": "en", "year": 1}])
    (file,) = open_files(input_at(path), {})
    reader = PartitionedReader(file.reader, {"lang": "en", "tier": None, "kind": "x y"})
    assert reader.columns == ["q", "lang", "year", "tier", "kind"]
    first, second, third = [row for _, row in reader.rows(None, 2)]
    assert first == {"q": "a", "lang": "en", "tier": None, "kind": "x y"} and third["year"] == 1
    assert isinstance(second, Problem) and "differs from the partition lang=en" in second.detail
    assert [row for _, row in reader.rows({"task": "kind", "prompt": "q"}, 2)][1] == {"prompt": "b", "task": "x y"}

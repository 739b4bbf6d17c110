"""Tables of ingest: row groups that do not depend on batches, and records held out by the hash of their prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.config.data import DataConfig
from dora_core.data.questions import question_hash
from dora_core.data.records import split_of
from tasks.stages import _ingest_tables
from tasks.stages._ingest_tables import Writer, hold_out_by_hash

SCHEMA = pa.schema([("n", pa.int64())])
QUARTER = DataConfig(train=[{"path": "records.jsonl"}], holdout_fraction=0.25)


def written(path: Path, chars: list[int]) -> list[int]:
    """Rows of each group of a table whose rows have these sizes."""
    writer: Writer[int] = Writer(path, SCHEMA, lambda rows: pa.table({"n": rows}, SCHEMA))
    for n, size in enumerate(chars):
        writer.add(n, size)
    writer.close()
    with pq.ParquetFile(path) as file:
        assert file.read()["n"].to_pylist() == list(range(len(chars)))
        return [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]


def test_groups_are_cut_by_rows_and_by_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ingest_tables, "GROUP_ROWS", 4)
    monkeypatch.setattr(_ingest_tables, "GROUP_CHARS", 10)
    assert written(tmp_path / "rows", [0] * 9) == [4, 4, 1]
    assert written(tmp_path / "chars", [9, 1, 20, 1]) == [2, 1, 1]
    assert written(tmp_path / "empty", []) == []


def records(path: Path, count: int) -> pa.Table:
    """Records in groups of 50, all training data until now."""
    hashes = np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)
    names = pa.array([str(i) for i in range(count)])
    table = pa.table({"record_id": names, "prompt_hash": pa.array(hashes), "split": pa.array(["train"] * count)})
    pq.write_table(table, path, row_group_size=50)
    return table


def test_records_are_held_out_by_hash_and_keep_their_order(tmp_path: Path) -> None:
    before, path = records(tmp_path / "records.parquet", 400), tmp_path / "records.parquet"
    counts = hold_out_by_hash(path, QUARTER, frozenset())
    after = pq.read_table(path)
    assert after.drop_columns("split").equals(before.drop_columns("split"))
    assert after["split"].to_pylist() == split_of(before["prompt_hash"].to_numpy(), 0.25).tolist()
    assert counts.total() == 400 and 60 < counts["eval"] < 140
    assert [file.name for file in tmp_path.iterdir()] == ["records.parquet"]


def test_a_copy_is_never_evaluated(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    records(path, 400)
    copies = frozenset(str(i) for i in range(0, 400, 2))
    counts = hold_out_by_hash(path, QUARTER, copies)
    rows = pq.read_table(path).to_pylist()
    assert not [row for row in rows if row["split"] == "eval" and row["record_id"] in copies]
    assert counts.total() == len(rows) < 400 and sum(row["record_id"] in copies for row in rows) > 100


def test_records_of_one_question_are_held_out_together(tmp_path: Path) -> None:
    """``split_by: question``: another system message or other white space is the same question."""
    table, path = records(tmp_path / "records.parquet", 400), tmp_path / "records.parquet"
    asked = [
        [{"role": "system", "content": f"Style {i % 2}."}, {"role": "user", "content": f"Question{' ' * (1 + i % 2)}{i // 2}"}]
        for i in range(400)
    ]
    pq.write_table(table.append_column("prompt", pa.array(asked)), path, row_group_size=50)
    counts = hold_out_by_hash(path, QUARTER.model_copy(update={"split_by": "question"}), frozenset())
    splits = pq.read_table(path)["split"].to_pylist()
    assert splits[::2] == splits[1::2] and 60 < counts["eval"] < 140
    assert splits == split_of(np.array([question_hash(prompt) for prompt in asked], np.uint64), 0.25).tolist()

"""Parquet files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dora_core.data.problems import Reason
from tests.dora_core.data.written_inputs import ROWS, read, refused, write_parquet


def test_rows_are_those_of_the_file_whatever_the_batch(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    assert read(path) == read(path, batch_rows=1) == read(path, batch_rows=100) == list(enumerate(ROWS))
    assert read(path.rename(tmp_path / "a.pq")) == list(enumerate(ROWS))


def test_text_that_is_not_utf8_costs_one_row(tmp_path: Path) -> None:
    responses = pa.array([["x", "y"]] * 3)
    prompts = pa.array([b"a", b"\xff", b"c"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": prompts, "responses": responses}), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", source="m")
    assert [row["prompt"] if isinstance(row, dict) else row.reason for _, row in found] == ["a", Reason.UNPARSABLE, "c"]


def test_a_flipped_bit_under_a_checksum_is_an_error_and_not_another_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, write_page_checksum=True, compression="none", use_dictionary=False)
    content = path.read_bytes()
    assert content.count(b"p3") >= 1
    path.write_bytes(content.replace(b"p3", b"q3", 1))
    assert "cannot read" in refused(path).message

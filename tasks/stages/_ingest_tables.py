"""Tables of ``ingest`` while they are written: row groups, and the late decision to hold records out by hash."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Container
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dora_core.config.data import DataConfig
from dora_core.data.questions import question_hash
from dora_core.data.records import split_of

GROUP_ROWS = 8192
GROUP_CHARS = 64_000_000
Row = TypeVar("Row")


class Writer(Generic[Row]):
    """Parquet writer with row groups cut by rows and characters, so that the bytes do not depend on the batches of the input."""

    def __init__(self, path: Path, schema: pa.Schema, to_table: Callable[[list[Row]], pa.Table]):
        self._file = pq.ParquetWriter(path, schema, compression="zstd")
        self._to_table = to_table
        self._pending: list[Row] = []
        self._chars = 0

    def add(self, row: Row, chars: int = 0) -> None:
        self._pending.append(row)
        self._chars += chars
        if len(self._pending) >= GROUP_ROWS or self._chars >= GROUP_CHARS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._pending:
            self._file.write_table(self._to_table(self._pending))
        self._pending, self._chars = [], 0


def hold_out_by_hash(path: Path, data: DataConfig, copies: Container[str]) -> Counter[str]:
    """Set the split of every row of a table by the hash of its prompt, or question (``data.split_by``); a copy of a record that is then
    held out is left out.

    Returns:
        Rows by split.
    """
    counts, temporary = Counter[str](), path.with_suffix(".rewritten")
    with pq.ParquetFile(path) as file, pq.ParquetWriter(temporary, file.schema_arrow, compression="zstd") as out:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            if data.split_by == "question":
                hashes = np.array([question_hash(prompt) for prompt in table["prompt"].to_pylist()], np.uint64)
            else:
                hashes = table["prompt_hash"].to_numpy().astype(np.uint64)
            splits = split_of(hashes, data.holdout_fraction)
            table = table.set_column(table.column_names.index("split"), "split", pa.array(splits.tolist(), pa.string()))
            kept = [split == "train" or name not in copies for split, name in zip(splits, table["record_id"].to_pylist(), strict=True)]
            table = table.filter(pa.array(kept, pa.bool_()))
            counts.update(table["split"].to_pylist())
            out.write_table(table)
    os.replace(temporary, path)
    return counts

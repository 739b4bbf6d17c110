"""Inputs on disk for the tests of the readers, and their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.config.data import DataSource
from dora_core.data.inputs import Content, Input, open_files
from dora_core.errors import DataError

ROWS = [{"id": str(i), "prompt": f"p{i}", "responses": ["x", "y"], "rewards": [1.0, 0.0], "sources": ["human", "m"]} for i in range(5)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def input_at(path: Path | str, content: Content = "train", **source: Any) -> Input:
    return Input(DataSource(path=str(path), **source), content, f"data.{content}[0]")


def read(path: Path | str, content: Content = "train", batch_rows: int = 2, **source: Any) -> list[tuple[int, Any]]:
    return [row for file in open_files(input_at(path, content, **source), {}) for row in file.rows(None, batch_rows)]


def refused(path: Path | str, content: Content = "train", **source: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path, content, **source)
    return caught.value

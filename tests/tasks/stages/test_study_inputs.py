"""Inputs of a study: tables of other stages, sorted and read once; gold rewards by prompt and sample."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.runtime.spec import StageRef
from tasks.stages._study_inputs import Reader, strings

REF = StageRef(stage="judge", digest="a" * 64)


def reader(folder: Path, table: pa.Table) -> Reader:
    pq.write_table(table, folder / "scores.parquet")
    context: Any = SimpleNamespace(fetch=lambda ref: folder)
    return Reader(context)


def test_gold_rewards_are_in_the_order_of_prompts_and_samples(tmp_path: Path) -> None:
    table = pa.table({"record_id": ["b", "a", "b", "a"], "sample": [1, 1, 0, 0], "score": [4.0, 2.0, 3.0, 1.0]})
    ids, gold = reader(tmp_path, table).gold(REF)
    assert ids.tolist() == ["a", "b"] and gold.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_table_is_read_once(tmp_path: Path) -> None:
    read = reader(tmp_path, pa.table({"record_id": ["b", "a"], "sample": [0, 0], "score": [1.0, 2.0]}))
    first = read.table(REF, "scores.parquet", ["record_id"])
    (tmp_path / "scores.parquet").unlink()
    assert read.table(REF, "scores.parquet", ["record_id"]) is first and strings(first["record_id"]).tolist() == ["a", "b"]


def test_prompts_with_different_numbers_of_samples_are_a_fault_of_the_planner(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="equally many samples"):
        reader(tmp_path, pa.table({"record_id": ["a", "a", "b"], "sample": [0, 1, 0], "score": [1.0, 2.0, 3.0]})).gold(REF)

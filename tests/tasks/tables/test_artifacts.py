"""Names and schemas of files between stages: unique names, and schemas that hold the rows that are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.tables import artifacts
from tasks.tables.artifacts import given_samples_schema, lineage_schema, logps_schema

NAMES = {name: value for name, value in vars(artifacts).items() if name.endswith(("_FILE", "_FOLDER"))}
LARGE = 2**64 - 1
ORIGIN = {"record_id": "1", "response_index": 0, "round": 1, "policy": None, "samples": "b", "judge": "c"}
LOGP = {"record_id": "1", "response_index": 0, "logp": -3.25, "tokens": 4, "prompt_tokens": 7, "truncated": 0}
ROWS: list[tuple[Callable[[], pa.Schema], dict[str, Any]]] = [
    (logps_schema, LOGP),
    (lineage_schema, {**ORIGIN, "prompt_hash": LARGE, "sample": 0, "score": 0.5}),
    (given_samples_schema, {"row": 2**40, "record_id": "1", "prompt_hash": LARGE, "sample": 0, "response": "r"}),
]


def test_files_have_names_of_their_own() -> None:
    assert len(set(NAMES.values())) == len(NAMES) >= 15
    assert all(Path(name).name == name for name in NAMES.values()), "no folders: a stage writes into its own"
    assert all(name.endswith((".parquet", ".arrow", ".npz")) for key, name in NAMES.items() if key.endswith("_FILE"))


@pytest.mark.parametrize(("schema", "row"), ROWS)
def test_a_row_comes_back_from_a_file(schema: Callable[[], pa.Schema], row: dict[str, Any], tmp_path: Path) -> None:
    assert schema().names == list(row)
    pq.write_table(pa.Table.from_pylist([row], schema=schema()), tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").to_pylist() == [row] and pq.read_schema(tmp_path / "t.parquet").equals(schema())


def test_keys_of_the_tables_have_one_type() -> None:
    by_name: dict[str, set[pa.DataType]] = {}
    for schema, _ in ROWS:
        for field in schema():
            by_name.setdefault(field.name, set()).add(field.type)
    assert {name: types for name, types in by_name.items() if len(types) > 1} == {}

"""Export of records: pairs, single responses and whole records."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.data.records import RECORDS_SCHEMA, with_tools
from dora_core.data.response_turns import join_turns
from dora_core.errors import DataError
from tasks.tables.preference_export import approvals, export_rows, export_schema, preferences


def made(name: str, rewards: list[float | None], split: str = "train", **more: Any) -> dict[str, Any]:
    size = len(rewards)
    row = {"record_id": name, "prompt": [{"role": "user", "content": f"ask {name}"}], "responses": [f"{name}.{i}" for i in range(size)]}
    row |= {"rewards": rewards, "sources": [f"s{i}" for i in range(size)], "reward_kind": "reward", "split": split}
    return row | {"prompt_hash": 1, "schema_version": 3} | more


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    records = [
        made("a", [3.0, 1.0, 2.0]),
        made("b", [1.0, 1.0]),
        made("c", [1.0, None], weight=2.0),
        made("d", [0.0, 1.0], split="eval"),
        made("e", [2.0, 0.0], weight=3.0),
    ]
    pq.write_table(pa.Table.from_pylist(records, schema=RECORDS_SCHEMA), tmp_path / "records.parquet")
    h = {"a": [3.0, 1.0, 2.0], "b": [1.0, 1.0], "c": [1.0, 1.0], "e": [0.5, 1.5]}
    rows = [{"record_id": name, "response_index": i, "h": value} for name, each in h.items() for i, value in enumerate(each)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "calibration.parquet")
    return tmp_path / "records.parquet", tmp_path / "calibration.parquet"


def test_pairs(files: tuple[Path, Path]) -> None:
    counts: Counter[str] = Counter()
    rows = list(export_rows(*files, "trl-pairs", counts))
    found = [(r["record_id"], r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in rows]
    assert found == [("a", "a.0", "a.1"), ("a", "a.0", "a.2"), ("a", "a.2", "a.1"), ("d", "d.1", "d.0"), ("e", "e.0", "e.1")]
    assert counts == {"records": 5, "rows": 5, "tied pairs": 1, "responses without a reward": 1, "records without a preference": 2}
    # h of a record is the mean of its responses', and the weights of its pairs sum to weight · h: a: 2 · 1, e: 1 · 3.
    assert sum(r["weight"] for r in rows if r["record_id"] == "a") == pytest.approx(2.0)
    first, held_out, last = rows[0], rows[3], rows[4]
    assert (first["h"], first["h_chosen"], first["h_rejected"], first["source_chosen"], first["source_rejected"]) == (
        2.0,
        3.0,
        1.0,
        "s0",
        "s1",
    )
    assert last["weight"] == pytest.approx(3.0) and (held_out["h"], held_out["weight"], held_out["split"]) == (None, 1.0, "eval")
    assert first["prompt"] == [{"role": "user", "content": "ask a"}] and first["chosen"][0]["role"] == "assistant"


def test_best_worst_and_one_split(files: tuple[Path, Path]) -> None:
    rows = list(export_rows(*files, "trl-pairs", Counter(), pairs="best_worst", split="train"))
    assert [(r["chosen"][0]["content"], r["rejected"][0]["content"], r["weight"]) for r in rows] == [
        ("a.0", "a.1", 2.0),
        ("e.0", "e.1", 3.0),
    ]


def test_unpaired(files: tuple[Path, Path]) -> None:
    rows = list(export_rows(*files, "trl-unpaired", Counter()))
    labels = [(r["completion"][0]["content"], r["label"]) for r in rows]
    assert labels == [("a.0", True), ("a.1", False), ("d.0", False), ("d.1", True), ("e.0", True), ("e.1", False)]
    assert [r["h"] for r in rows][:2] == [3.0, 1.0] and sum(r["weight"] for r in rows[:2]) == pytest.approx(2.0)


def test_whole_records_and_no_factors(files: tuple[Path, Path]) -> None:
    rows = list(export_rows(files[0], None, "records", Counter()))
    assert [r["record_id"] for r in rows] == list("abcde") and rows[0]["responses"] == ["a.0", "a.1", "a.2"]
    assert all(r["h"] is None for r in rows) and [r["weight"] for r in rows] == [1.0, 1.0, 2.0, 1.0, 3.0]


@pytest.mark.parametrize("form", ["trl-pairs", "trl-unpaired", "records"])
def test_the_schema_holds_every_row(files: tuple[Path, Path], form: Any) -> None:
    rows = list(export_rows(*files, form, Counter()))
    schema = export_schema(files[0], form)
    assert all(row.keys() <= set(schema.names) for row in rows)
    table = pa.Table.from_pylist(rows, schema=schema)
    assert table["weight"].to_pylist() == [row["weight"] for row in rows]


def test_factors_of_other_records_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"record_id": "z", "response_index": 0, "h": 1.0}]), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="z where a is expected"):
        list(export_rows(files[0], tmp_path / "other.parquet", "trl-pairs", Counter()))


def test_tool_calls_stay_in_the_prompt(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    call = [{"type": "function", "function": {"name": "weather", "arguments": {}}}]
    prompt = [
        {"role": "user", "content": "Weather?", "extra": json.dumps({"tools": tools})},
        {"role": "assistant", "content": "", "extra": json.dumps({"tool_calls": call})},
    ]
    path = tmp_path / "records.parquet"
    pq.write_table(pa.Table.from_pylist([made("a", [1.0, 0.0], prompt=prompt)], schema=with_tools(RECORDS_SCHEMA)), path)
    (row,) = export_rows(path, None, "trl-pairs", Counter())
    assert json.loads(row["tools"]) == tools and row["prompt"][1]["tool_calls"] == call


def test_preferences_and_approvals() -> None:
    assert preferences([1.0, 1.0, None], "all") == [] == preferences([None, 1.0], "best_worst")
    assert preferences([1.0, 3.0, 2.0], "best_worst") == [(1, 0)]
    assert approvals([2.0, 2.0, 1.0]) == [(0, True), (1, True), (2, False)]
    assert approvals([1.0]) == [(0, True)] and approvals([0.0]) == [(0, False)] and approvals([None]) == []


def test_a_response_of_several_turns_is_written_as_messages(tmp_path: Path) -> None:
    turns = [{"role": role, "content": role} for role in ("assistant", "user", "assistant")]
    record = made("a", [1.0, 0.0]) | {"responses": [join_turns(turns), "no"]}
    pq.write_table(pa.Table.from_pylist([record], schema=RECORDS_SCHEMA), tmp_path / "records.parquet")
    [row] = export_rows(tmp_path / "records.parquet", None, "trl-pairs", Counter())
    assert row["chosen"] == turns and row["rejected"] == [{"role": "assistant", "content": "no"}]

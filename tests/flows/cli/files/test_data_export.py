"""Records of a configuration or a run as a file."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dora_core.errors import DataError
from flows.cli.files.data_export import _without_tool_calls
from tests.flows.cli.invoked import document, invoke

pytestmark = pytest.mark.usefixtures("own_home")


def test_export_reads_the_data_where_it_was_not_yet(config_file: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    found = document("data", "export", "-c", config_file, "-o", pairs)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert found["rows"] == len(rows) > 0 and found["records"] == 40 and not found["calibrated"]
    assert all(row["reward_chosen"] > row["reward_rejected"] and row["h"] is None for row in rows)
    again = tmp_path / "pairs.parquet"
    assert document("data", "export", "-c", config_file, "-o", again)["rows"] == len(rows)
    assert [row["chosen"] for row in pq.read_table(again).to_pylist()] == [row["chosen"] for row in rows]


def test_export_says_what_was_left_out(config_file: Path, tmp_path: Path) -> None:
    code, said, _ = invoke("data", "export", "-c", config_file, "-o", tmp_path / "all.jsonl", "--format", "records")
    assert code == 0 and "40 rows of 40 records" in said and "nothing is calibrated yet (dora calibrate -c" in said


def test_export_refuses(config_file: Path, tmp_path: Path) -> None:
    code, _, said = invoke("data", "export", "-o", tmp_path / "x.jsonl")
    assert code == 2 and "export takes a configuration or a run" in said
    code, _, said = invoke("data", "export", "-c", config_file, "-o", tmp_path / "x.csv")
    assert code == 2 and ".parquet or .jsonl" in said
    code, _, said = invoke("data", "export", "--run", "latest", "-o", tmp_path / "x.jsonl")
    assert code == 2 and "there are no runs" in said
    (tmp_path / "x.jsonl").write_text("mine")
    code, _, said = invoke("data", "export", "-c", config_file, "-o", tmp_path / "x.jsonl")
    assert code == 2 and "--overwrite" in said


def test_tool_calls_fit_into_no_column_of_messages() -> None:
    plain = {"record_id": "1", "prompt": [{"role": "user", "content": "q"}]}
    called = {"record_id": "2", "prompt": [{"role": "assistant", "content": "", "tool_calls": "[]"}]}
    rows = _without_tool_calls(iter([plain, called]))
    assert next(rows) == plain
    with pytest.raises(DataError, match="record 2 has tool calls in its prompt") as caught:
        next(rows)
    assert caught.value.hint == "write a .jsonl file, or --format records"

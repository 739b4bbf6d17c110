"""Records of a configuration or a run as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dora_core.errors import DataError
from flows.cli import app
from flows.cli.files.data_export import _without_tool_calls

CONFIG = "data: {{train: [{{path: {path}}}], golden_sources: [human]}}\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))


@pytest.fixture
def config(tmp_path: Path, mixture: Path) -> Path:
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG.format(path=mixture))
    return file


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["data", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def document(*arguments: object) -> dict[str, Any]:
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    return found


def test_export_reads_the_data_where_it_was_not_yet(config: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    found = document("export", "-c", config, "-o", pairs)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert found["rows"] == len(rows) > 0 and found["records"] == 40 and not found["calibrated"]
    assert all(row["reward_chosen"] > row["reward_rejected"] and row["h"] is None for row in rows)
    again = tmp_path / "pairs.parquet"
    assert document("export", "-c", config, "-o", again)["rows"] == len(rows)
    assert [row["chosen"] for row in pq.read_table(again).to_pylist()] == [row["chosen"] for row in rows]


def test_export_says_what_was_left_out(config: Path, tmp_path: Path) -> None:
    code, said, _ = run("export", "-c", config, "-o", tmp_path / "all.jsonl", "--format", "records")
    assert code == 0 and "40 rows of 40 records" in said and "nothing is calibrated yet (dora calibrate -c" in said


def test_export_refuses(config: Path, tmp_path: Path) -> None:
    code, _, said = run("export", "-o", tmp_path / "x.jsonl")
    assert code == 2 and "export takes a configuration or a run" in said
    code, _, said = run("export", "-c", config, "-o", tmp_path / "x.csv")
    assert code == 2 and ".parquet or .jsonl" in said
    code, _, said = run("export", "--run", "latest", "-o", tmp_path / "x.jsonl")
    assert code == 2 and "there are no runs" in said
    (tmp_path / "x.jsonl").write_text("mine")
    code, _, said = run("export", "-c", config, "-o", tmp_path / "x.jsonl")
    assert code == 2 and "--overwrite" in said


def test_tool_calls_fit_into_no_column_of_messages() -> None:
    plain = {"record_id": "1", "prompt": [{"role": "user", "content": "q"}]}
    called = {"record_id": "2", "prompt": [{"role": "assistant", "content": "", "tool_calls": "[]"}]}
    rows = _without_tool_calls(iter([plain, called]))
    assert next(rows) == plain
    with pytest.raises(DataError, match="record 2 has tool calls in its prompt") as caught:
        next(rows)
    assert caught.value.hint == "write a .jsonl file, or --format records"

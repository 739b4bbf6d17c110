"""`dora init`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [*arguments])
    return done.exit_code, done.stdout, done.stderr


def test_the_written_file_plans(tmp_path: Path, mixture: Path) -> None:
    file = tmp_path / "realign.yaml"
    code, said, _ = run("init", str(mixture), "-o", str(file))
    assert code == 0 and "assumed: trusted: human, by name" in said and file.exists()
    code, said, _ = run("realign", "-c", str(file), "--dry-run")
    assert code == 0 and said.startswith(f"data.train[0] {mixture}: parquet, no preset, shape list, 40 rows, trusted: human")
    assert "ingest" in said


def test_an_existing_file_is_kept(tmp_path: Path, mixture: Path) -> None:
    file = tmp_path / "realign.yaml"
    file.write_text("mine")
    code, _, said = run("init", str(mixture), "-o", str(file))
    assert code == 2 and "--force" in said and file.read_text() == "mine"
    assert run("init", str(mixture), "-o", str(file), "--force")[0] == 0 and file.read_text() != "mine"


def test_json(tmp_path: Path, mixture: Path) -> None:
    code, out, _ = run("init", str(mixture), "-o", str(tmp_path / "c.yaml"), "--json")
    found = json.loads(out)
    assert code == 0 and found["config"].endswith("c.yaml") and found["preview"]["inputs"][0]["rows"] == 40


def test_data_that_a_run_would_refuse(tmp_path: Path) -> None:
    rows = [{"prompt": "same", "chosen": f"a{i}", "rejected": f"a{i}"} for i in range(4)]
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, said = run("init", str(path), "-o", str(tmp_path / "c.yaml"))
    assert code == 2 and "a run would refuse the data" in said and "identical_pair" in said

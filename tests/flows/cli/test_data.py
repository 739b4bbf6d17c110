"""`dora data preview` and `dora data export`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import app

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


def test_preview_of_a_configuration(config: Path) -> None:
    code, said, _ = run("preview", "-c", config)
    assert code == 0 and "a run would accept this data" in said and "h can be estimated: trusted: source human" in said
    assert said.count("── record") == 3 and "[user]" in said and "preferred]" in said
    assert re.search(r"⟦[^⟧]+⟧⟨<eos>⟩", said), "the response and the end token are marked"


def test_preview_of_files(mixture: Path) -> None:
    code, said, _ = run("preview", mixture, "--shown", "0")
    assert code == 0 and "read as `dora init` would write it" in said and "── record" not in said


def test_preview_as_json(config: Path) -> None:
    found = document("preview", "-c", config)
    assert found["accepted"] and found["total"]["records"] == 40 and found["factors"]["possible"]
    (examples,) = found["rendered"].values()
    assert examples[0].keys() == {"prompt", "response", "end"} and len(found["inputs"][0]["shown"]) == 3


def test_refused_data_has_exit_code_2(tmp_path: Path, mixture: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG.format(path=mixture).replace("[human]", "[nobody-here]"))
    code, said, error = run("preview", "-c", file, "--shown", "0")
    assert code == 2 and "no source matches data.golden_sources" in error and "h cannot be estimated" in said
    code, out, _ = run("preview", "-c", file, "--json")
    assert code == 2 and not json.loads(out)["accepted"]


@pytest.mark.parametrize("arguments", [[], ["--run", "latest"], ["x.jsonl", "-c", "c.yaml"], ["x.jsonl", "--set", "a=1"]])
def test_wrong_arguments(arguments: list[str]) -> None:
    code, _, said = run("preview", *arguments)
    assert code == 2 and "preview takes a configuration or inputs" in said


def test_the_page_holds_the_records(config: Path, tmp_path: Path) -> None:
    page = tmp_path / "data.html"
    code, said, _ = run("preview", "-c", config, "-o", page)
    text = page.read_text()
    rows = json.loads(text.split('id="rows">')[1].split("</script>")[0])
    assert code == 0 and f"page: {page}" in said and len(rows) == 40 and rows[0]["kind"] == "record"
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", text.split('id="rows">')[0]), "nothing is loaded from elsewhere"


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


def test_help_has_an_example() -> None:
    for command in ("preview", "export"):
        code, said, _ = run(command, "--help")
        assert code == 0 and f"dora data {command}" in " ".join(said.split())

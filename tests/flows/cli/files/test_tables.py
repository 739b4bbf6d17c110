"""The files that commands write."""

from __future__ import annotations

from pathlib import Path

from tests.flows.cli.files.commands import refused, run


def test_another_result_replaces_a_file_only_when_asked(home: Path) -> None:
    command = ["judge", "data.parquet", "-o", "s.jsonl", "--judge", "gold", "--set", "judge.testbed.prompts=8"]
    run(*command)
    first = Path("s.jsonl").read_bytes()
    Path("s.jsonl").write_text("other\n")
    assert "s.jsonl exists and holds something else" in refused(*command)
    assert Path("s.jsonl").read_text() == "other\n"
    run(*command, "--overwrite")
    assert Path("s.jsonl").read_bytes() == first

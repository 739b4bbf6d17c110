"""The stages behind the commands on files, in this process and on Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.cli.files.commands import GENERATE, run


@pytest.mark.component
def test_workers_on_ray_write_the_same_bytes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["generate", "prompts.jsonl", "-m", "m0", *GENERATE]
    run(*command, "-o", "here.parquet")
    monkeypatch.setenv("DORA_HOME", str(home / "other"))
    run(*command, "-o", "ray.parquet", "--workers", "1")
    assert Path("ray.parquet").read_bytes() == Path("here.parquet").read_bytes()
    assert not any((home / "other" / "ray").iterdir()), "the command's own head has ended"

"""`dora evaluate`: a configuration, or two judged files."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from flows.cli import app


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a.parquet"],
        ["a.parquet", "b.parquet", "-c", "c.yaml"],
        ["a.parquet", "b.parquet", "--dry-run"],
        ["-c", "c.yaml", "-o", "x.md"],
    ],
)
def test_it_takes_either_a_configuration_or_two_files(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["evaluate", *arguments])
    assert done.exit_code == 2 and "evaluate takes a configuration or two judged files" in done.stderr
    assert "dora evaluate OURS THEIRS" in done.stderr

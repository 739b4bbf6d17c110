"""`dora data preview` and `dora data export`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.flows.cli.invoked import invoke

pytestmark = pytest.mark.usefixtures("own_home")


def test_refused_data_has_exit_code_2(config_file: Path) -> None:
    config_file.write_text(config_file.read_text().replace("[human]", "[nobody-here]"))
    code, said, error = invoke("data", "preview", "-c", config_file, "--shown", "0")
    assert code == 2 and "no source matches data.golden_sources" in error and "h cannot be estimated" in said
    code, out, _ = invoke("data", "preview", "-c", config_file, "--json")
    assert code == 2 and not json.loads(out)["accepted"]


@pytest.mark.parametrize("arguments", [[], ["--run", "latest"], ["x.jsonl", "-c", "c.yaml"], ["x.jsonl", "--set", "a=1"]])
def test_wrong_arguments(arguments: list[str]) -> None:
    code, _, said = invoke("data", "preview", *arguments)
    assert code == 2 and "preview takes a configuration or inputs" in said


def test_help_has_an_example() -> None:
    for command in ("preview", "export"):
        code, said, _ = invoke("data", command, "--help")
        assert code == 0 and f"dora data {command}" in " ".join(said.split())

"""`dora label`: arguments and help."""

from __future__ import annotations

from pathlib import Path

import pytest

from dora_core.selection.acquisition import DEFAULT
from tests.flows.cli.invoked import assert_wrong, invoke

pytestmark = pytest.mark.usefixtures("own_home")


def test_help_has_an_example() -> None:
    for command in ("suggest", "import"):
        code, said, _ = invoke("label", command, "--help")
        assert code == 0 and f"dora label {command}" in " ".join(said.split())


@pytest.mark.parametrize("arguments", [[], ["-c", "c.yaml", "--run", "latest"], ["--run", "latest", "--set", "a=1"]])
def test_a_configuration_or_a_run(arguments: list[str], tmp_path: Path) -> None:
    assert_wrong("label", "suggest", "-o", tmp_path / "x", *arguments, says="give a configuration or a run")
    assert_wrong("label", "import", "a.json", "-o", tmp_path / "x", *arguments, says="give a configuration or a run")


def test_the_default_rule_is_that_of_the_method() -> None:
    assert f"[default: {DEFAULT}]" in " ".join(invoke("label", "suggest", "--help").out.replace("│", " ").split())

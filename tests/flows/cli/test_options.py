"""Options that commands share: one name, one letter and one help text everywhere."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import typer

from flows.cli import app, options

SHARED = {name: get_args(value)[1] for name, value in vars(options).items() if len(get_args(value)) == 2 and get_args(value)[1:]}
SHARED = {name: option for name, option in SHARED.items() if hasattr(option, "param_decls")}
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def users(option: Any) -> dict[str, Any]:
    """The click parameters of the commands with the option's long name and help, by command."""
    return {name: each for name, command in COMMANDS.items() for each in command.params if getattr(each, "help", None) == option.help}


def test_the_shared_options_are_found() -> None:
    assert {"Config", "Set", "DryRun", "Json", "Verbose", "OutputFile", "Overwrite", "Workers"} <= SHARED.keys()


@pytest.mark.parametrize("name", sorted(SHARED))
def test_every_shared_option_is_used_and_explained(name: str) -> None:
    option = SHARED[name]
    found = users(option)
    assert found and option.help.endswith(".")
    for parameter in found.values():
        assert {option.default, *option.param_decls} == set(parameter.opts)


def test_json_means_the_same_in_every_command() -> None:
    texts = {each.help for command in COMMANDS.values() for each in command.params if "--json" in each.opts}
    assert texts == {SHARED["Json"].help}

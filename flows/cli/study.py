"""`dora study`: the paper's comparisons on generated data."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import DryRun, Json, Set, Verbose


class Preset(StrEnum):
    """Studies that come with the package, ``infra/configs/study-<name>.yaml``."""

    QUICK = "quick"
    FULL = "full"


@app.command(epilog="Example: dora study --preset quick --set seeds=[0] --dry-run")
def study(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Study configuration (YAML); instead of --preset.")] = None,
    preset: Annotated[Preset | None, typer.Option("--preset", help="quick: minutes, two seeds; full: hours, five seeds.")] = None,
    overrides: Set = [],  # noqa: B006
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run the paper's comparisons on generated data whose truth is known; write tables with intervals and a page."""
    with explained(as_json):
        from dora_core.errors import ConfigError
        from flows.cli.run import dry_study, run
        from flows.config.loading import load_config, load_preset
        from flows.config.models import StudyConfig

        if (config is None) == (preset is None):
            raise ConfigError(
                "a study needs --preset or -c" if config is None else "--preset and -c exclude each other",
                hint="dora study --preset quick, or: dora study -c FILE",
            )
        if config is not None:
            loaded = load_config(config, overrides, StudyConfig)
        elif preset is not None:
            loaded = load_preset(f"study-{preset.value}.yaml", overrides, StudyConfig)
        if dry_run:
            dry_study(loaded, as_json=as_json)
        else:
            run(loaded, as_json=as_json, verbose=verbose)

"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Option("--config", "-c", help="Configuration file (YAML); see infra/configs/ for documented examples.")]
Set = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one value, e.g. align.objective.lambda=2.0; repeatable.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would run and why; run nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs of the stages and of Prefect.")]

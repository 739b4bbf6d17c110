"""`dora demo`: the whole pipeline on generated data."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import DryRun, Json, Verbose


@app.command(epilog="Example: dora demo")
def demo(
    rounds: Annotated[int, typer.Option("--rounds", min=0, help="Self-training rounds after the realignment.")] = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run everything on this machine with generated data: no downloads, a few minutes; again with nothing changed: seconds."""
    with explained(as_json):
        from flows.cli.run import run_or_show
        from flows.config.demo import demo_config
        from infra.settings import Settings

        folder = Settings().root / "demo"
        run_or_show(demo_config(folder, rounds), "promote", dry_run, as_json, verbose, folder / "report.html")

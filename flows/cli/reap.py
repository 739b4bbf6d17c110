"""`dora reap`: clean up after runs whose process is gone."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import Json


@app.command(epilog="Example: dora reap --dry-run")
def reap(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is left over; stop nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Clean up after runs whose process is gone: Ray jobs, MLflow runs, slots. Live runs are left alone; safe to repeat."""
    with explained(as_json):
        from flows.cli.output import Out
        from flows.upkeep import reap as reaping
        from infra.settings import Settings, apply_environment

        settings = Settings()
        reaped = reaping.sweep(settings, apply_environment(settings), dry_run=dry_run)
        out = Out(as_json)
        for line in reaped.lines():
            out.say(line)
        out.document(reaped.to_json())
        if reaped.problems:
            raise typer.Exit(1)

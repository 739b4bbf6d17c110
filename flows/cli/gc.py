"""`dora gc`: delete unreachable results from the artifact store."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import Json


@app.command(epilog="Example: dora gc --older-than 30d, then: dora gc --older-than 30d --delete")
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; without this, only list them.")] = False,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Keep runs that ended and stages that were written within it: 90m, 12h, 30d.")
    ] = "7d",
    keep_runs: Annotated[
        int, typer.Option("--keep-runs", min=1, help="Keep as many completed runs of each project and kind, however old.")
    ] = 3,
    unregistered: Annotated[
        bool, typer.Option("--unregistered", help="Continue although MLflow has none of the models that runs of this store registered.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every folder that stays, with the reason.")] = False,
    as_json: Json = False,
) -> None:
    """Find, or delete, results in the artifact store that no registered model, run under way or next run needs."""
    with explained(as_json):
        from flows.cli.output import Out
        from flows.upkeep import gc as collecting
        from infra.settings import Settings, apply_environment

        out, settings, age = Out(as_json), Settings(), collecting.parse_age(older_than)
        with out.counting() as progress:
            collected = collecting.collect(
                settings,
                apply_environment(settings),
                delete=delete,
                older_than=age,
                keep_runs=keep_runs,
                unregistered=unregistered,
                progress=progress,
            )
        shown = collecting.shown
        counts = collected.stages.items()
        rows = [
            (name, str(c.folders), shown(c.bytes), str(c.removed or ""), shown(c.removed_bytes) if c.removed else "") for name, c in counts
        ]
        out.table(("in the store", "folders", "size", "gone" if delete else "would go", ""), rows)
        out.table(("kept for", "folders", "size"), [(why, str(n), shown(size)) for why, (n, size) in collected.reasons().items()])
        if verbose:
            listed = [(place, why) for place, why in collected.kept.items()] + [(place, "") for place in collected.removed]
            out.table(("folder", "kept for"), sorted(listed))
        for line in (*collected.notes, *collected.problems, collected.summary()):
            out.say(line)
        out.document(collected.to_json())
        if collected.problems:
            raise typer.Exit(1)

"""`dora report`: the page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import Json


@app.command(epilog="Example: dora report latest -o report.html")
def report(
    run: Annotated[str, typer.Argument(help="Run id or its beginning; `latest` for the last one.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: <home>/reports/RUN.html.")] = None,
    prompts: Annotated[
        int | None,
        typer.Option("--prompts", min=0, max=50, help="Held-out prompts shown with their responses, in full; default: report.prompts."),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about a run."""
    with explained(as_json):
        from flows.cli.output import Out
        from flows.cli.run import write_report
        from flows.report.find import find_run
        from infra.settings import Settings
        from infra.store.store import Store

        settings = Settings()
        store = Store(settings.store_uri)
        run_id = find_run(store, run)
        path = write_report(store, run_id, output or settings.root / "reports" / f"{run_id}.html", prompts)
        out = Out(as_json)
        out.say(f"report: {path}")
        out.document({"run_id": run_id, "report": str(path)})
        if open_it:
            typer.launch(path.as_uri())

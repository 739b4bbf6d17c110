"""`dora runs` and `dora logs`: the project's history on a terminal, from the store alone; no server is needed."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import Json

runs_app = typer.Typer(
    name="runs", help="List runs, show one, or compare two.", rich_markup_mode="rich", invoke_without_command=True, no_args_is_help=False
)
app.add_typer(runs_app)

RUN_HELP = "Run id or its beginning; `latest` for the last one."


def run_ids(incomplete: str) -> list[str]:
    """Return the ids of runs that begin so, newest first, for the completion of a shell; none where the store cannot be read."""
    from contextlib import suppress

    from dora_core.errors import DoraError
    from infra.settings import Settings
    from infra.store.store import Store

    with suppress(DoraError, OSError, ValueError):
        return [name for name in ["latest", *reversed(Store(Settings().store_uri).list("runs"))] if name.startswith(incomplete)]
    return []


@runs_app.callback(epilog="Example: dora runs --project demo, or: dora runs show latest")
def runs(
    context: typer.Context,
    project: Annotated[str | None, typer.Option("--project", help="Only runs of this project.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="The last so many.")] = 20,
    as_json: Json = False,
) -> None:
    """List runs, newest first: when, verdict, id, and why; then the link to each page."""
    if context.invoked_subcommand is not None:
        return
    with explained(as_json):
        from flows.cli.files.run_history import listed, say_list
        from flows.cli.output import Out
        from infra.settings import Settings
        from infra.store.store import Store

        found = listed(Store(Settings().store_uri), project, count)
        out = Out(as_json)
        say_list(out, found)
        out.document({"runs": [line.to_json() for line in found]})


@runs_app.command(epilog="Example: dora runs show latest")
def show(run: Annotated[str, typer.Argument(help=RUN_HELP, autocompletion=run_ids)] = "latest", as_json: Json = False) -> None:
    """Show one run: verdict, reason, next command, stages, links."""
    with explained(as_json):
        from flows.cli.files.run_history import say_run
        from flows.cli.output import Out
        from flows.report.find import find_run, manifest_of
        from infra.settings import Settings
        from infra.store.store import Store

        store = Store(Settings().store_uri)
        record = manifest_of(store, find_run(store, run))
        out = Out(as_json)
        say_run(out, store, record)
        out.document(record.model_dump(mode="json"))


@runs_app.command(epilog="Example: dora runs diff demo-20261130 latest")
def diff(
    one: Annotated[str, typer.Argument(help=RUN_HELP, autocompletion=run_ids)],
    other: Annotated[str, typer.Argument(help=RUN_HELP, autocompletion=run_ids)] = "latest",
    as_json: Json = False,
) -> None:
    """Compare two runs: verdicts, settings that differ, stages whose results differ, and the metrics that both have."""
    with explained(as_json):
        from flows.cli.files.run_history import compared, say_difference
        from flows.cli.output import Out
        from flows.report.find import find_run, manifest_of
        from infra.settings import Settings
        from infra.store.store import Store

        store = Store(Settings().store_uri)
        difference = compared(store, *(manifest_of(store, find_run(store, query)) for query in (one, other)))
        out = Out(as_json)
        say_difference(out, difference)
        out.document(difference.to_json())


@app.command(epilog="Example: dora logs latest align")
def logs(
    run: Annotated[str, typer.Argument(help=RUN_HELP, autocompletion=run_ids)] = "latest",
    stage: Annotated[str | None, typer.Argument(help="Label of a stage; default: the one that runs, or that failed.")] = None,
    as_json: Json = False,
) -> None:
    """Print the log of a stage's job: of one that failed from its file, of a newer one from Ray's head if that still runs."""
    with explained(as_json):
        from flows.cli.files.run_history import log_of
        from flows.cli.output import Out
        from flows.report.find import find_run, manifest_of
        from infra.settings import Settings
        from infra.store.store import Store

        settings = Settings()
        store = Store(settings.store_uri)
        label, text = log_of(settings, manifest_of(store, find_run(store, run)), stage)
        out = Out(as_json)
        out.say(text)
        out.document({"stage": label, "log": text})

"""`dora tune`: a search over settings of alignment."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import Config, DryRun, Json, Set, Verbose


@app.command(
    epilog="Example: dora tune -c mixture.yaml --over align.objective.lambda=0.1..10:log --over align.loss.beta=0.05,0.1,0.3 --trials 20"
)
def tune(
    config: Config,
    over: Annotated[
        list[str],
        typer.Option(
            "--over",
            metavar="KEY=SPACE",
            help="A key to vary, and its values: 0.1..10, 0.1..10:log, 0.1..10:log:5, 8..64 (whole numbers), or 0.05,0.1,0.3; repeatable.",
        ),
    ] = [],  # noqa: B006
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, max=1000, help="Trials beside the configuration as it is. Default: 20.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.01, help="Budget; trials that have not ended are compared as far as they came.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the project's last search; --over and --trials are its own.")
    ] = False,
    overrides: Set = [],  # noqa: B006
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Search settings of alignment by short trials, judged by golden preferences of held-out train prompts; print the line to configure."""
    with explained(as_json):
        from flows.cli.searches import find_search, remember, run_search
        from flows.config.loading import load_config
        from flows.config.models import RealignConfig
        from infra.settings import Settings
        from infra.store.store import Store

        loaded: RealignConfig = load_config(config, overrides)
        store = Store(Settings().store_uri)
        search = find_search(loaded, store, over, trials, minutes, resume)
        if not dry_run:
            remember(store, loaded, search)
        run_search(loaded, search, dry_run=dry_run, as_json=as_json, verbose=verbose)

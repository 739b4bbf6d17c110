"""`dora self-train`: a realignment, then rounds on the policy's own samples."""

from __future__ import annotations

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import Config, DryRun, Json, Set, Verbose


@app.command("self-train", epilog="Example: dora self-train -c rounds.yaml --set rounds.rounds=2 --dry-run")
def self_train(config: Config, overrides: Set = [], dry_run: DryRun = False, as_json: Json = False, verbose: Verbose = False) -> None:  # noqa: B006
    """Realign, then let the policy learn from its own judged samples, round by round, until done or stopped by a guard rail."""
    with explained(as_json):
        from flows.cli.run import run_file
        from flows.config.models import SelfTrainConfig

        run_file(config, overrides, "promote", dry_run, as_json, verbose, model=SelfTrainConfig)

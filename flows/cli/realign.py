"""`dora realign`, and the commands that end before its last stage: `dora calibrate`, `dora align`."""

from __future__ import annotations

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import Config, DryRun, Json, Set, Verbose


@app.command(epilog="Example: dora realign -c mixture.yaml --set align.objective.lambda=2.0 --dry-run")
def realign(config: Config, overrides: Set = [], dry_run: DryRun = False, as_json: Json = False, verbose: Verbose = False) -> None:  # noqa: B006
    """Align, evaluate and promote a model on preference data; only what changed is computed."""
    with explained(as_json):
        from flows.cli.run import run_file

        run_file(config, overrides, "promote", dry_run, as_json, verbose)


@app.command(epilog="Example: dora calibrate -c mixture.yaml --set calibration.form=paper")
def calibrate(config: Config, overrides: Set = [], dry_run: DryRun = False, as_json: Json = False, verbose: Verbose = False) -> None:  # noqa: B006
    """Fit the source classifiers and write the calibration factors; no model is trained."""
    with explained(as_json):
        from flows.cli.run import run_file

        run_file(config, overrides, "calibrate", dry_run, as_json, verbose)


@app.command(epilog="Example: dora align -c mixture.yaml --set align.loss.name=dpo_pl")
def align(config: Config, overrides: Set = [], dry_run: DryRun = False, as_json: Json = False, verbose: Verbose = False) -> None:  # noqa: B006
    """Everything up to the aligned model; no evaluation, no promotion."""
    with explained(as_json):
        from flows.cli.run import run_file

        run_file(config, overrides, "align", dry_run, as_json, verbose)

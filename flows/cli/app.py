"""The commands of ``dora``, each with an example in its help.

Exit codes: 0 success · 1 a stage or server failed, or a guard rail stopped the run · 2 the configuration, the data or the command is
wrong · 130 stopped by Ctrl-C. Errors go to stderr as one panel with the remedy; with ``--json`` stdout carries exactly one JSON document.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli import file_commands, operate
from flows.cli.errors import explained
from flows.cli.options import Config, DryRun, Json, Set, Verbose

if TYPE_CHECKING:
    from flows.config.models import RealignConfig
    from flows.planning.plan import Until

app = typer.Typer(
    name="dora",
    help="Distribution-aware robust alignment as a recurring pipeline. Start with: [bold]dora demo[/]",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main() -> None:
    app()


def _pipeline(config: Path, overrides: list[str], until: Until, dry_run: bool, as_json: bool, verbose: bool) -> None:
    with explained(as_json):
        from flows.config.loading import load_config

        _run_or_show(load_config(config, overrides), until, dry_run, as_json, verbose)


def _run_or_show(config: RealignConfig, until: Until, dry_run: bool, as_json: bool, verbose: bool, report: Path | None = None) -> None:
    from flows.cli.run import dry_run as show_plan
    from flows.cli.run import run

    if dry_run:
        show_plan(config, until, as_json=as_json)
    else:
        run(config, until, as_json=as_json, verbose=verbose, report=report)


@app.command(epilog="Example: dora demo")
def demo(
    rounds: Annotated[int, typer.Option("--rounds", min=0, help="Self-training rounds after the realignment.")] = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run everything on this machine with generated data: no downloads, a few minutes; again with nothing changed: seconds."""
    with explained(as_json):
        from flows.config.demo import demo_config
        from infra.settings import Settings

        folder = Settings().root / "demo"
        _run_or_show(demo_config(folder, rounds), "promote", dry_run, as_json, verbose, folder / "report.html")


@app.command(epilog="Example: dora realign -c mixture.yaml --set align.objective.lambda=2.0 --dry-run")
def realign(config: Config, overrides: Set = [], dry_run: DryRun = False, as_json: Json = False, verbose: Verbose = False) -> None:  # noqa: B006
    """Align, evaluate and promote a model on preference data; only what changed is computed."""
    _pipeline(config, overrides, "promote", dry_run, as_json, verbose)


@app.command(epilog="Example: dora calibrate -c mixture.yaml --set calibration.form=paper")
def calibrate(config: Config, overrides: Set = [], dry_run: DryRun = False, as_json: Json = False, verbose: Verbose = False) -> None:  # noqa: B006
    """Fit the source classifiers and write the calibration factors; no model is trained."""
    _pipeline(config, overrides, "calibrate", dry_run, as_json, verbose)


@app.command(epilog="Example: dora align -c mixture.yaml --set align.loss.name=dpo_pl")
def align(config: Config, overrides: Set = [], dry_run: DryRun = False, as_json: Json = False, verbose: Verbose = False) -> None:  # noqa: B006
    """Everything up to the aligned model; no evaluation, no promotion."""
    _pipeline(config, overrides, "align", dry_run, as_json, verbose)


@app.command(epilog="Example: dora evaluate -c mixture.yaml --set evaluate.erm_twin=true, or: dora evaluate ours.parquet theirs.parquet")
def evaluate(
    files: Annotated[list[Path] | None, typer.Argument(metavar="[OURS THEIRS]", help="Two files of `dora judge`; instead of -c.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file (YAML) of a realignment.")] = None,
    overrides: Set = [],  # noqa: B006
    report: Annotated[Path | None, typer.Option("--output", "-o", help="Two files: write the comparison there too, as Markdown.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Everything up to the evaluation and the gate; nothing is registered. With two judged files: how often ours win, tie and lose."""
    with explained(as_json):
        from dora_core.errors import ConfigError

        if (config is None) != (len(files or []) == 2) or (config is not None and (files or report)) or (files and dry_run):
            raise ConfigError(
                "evaluate takes a configuration or two judged files", hint="dora evaluate -c FILE, or: dora evaluate OURS THEIRS"
            )
        if config is None:
            file_commands.evaluate(*files, overrides, report, as_json)
        else:
            _pipeline(config, overrides, "evaluate", dry_run, as_json, verbose)


app.command(epilog="Example: dora generate prompts.jsonl -o samples.parquet --model ./model --samples 4")(file_commands.generate)
app.command(epilog="Example: dora judge samples.parquet -o scores.parquet --judge reward_model --model ./reward")(file_commands.judge)


@app.command("self-train", epilog="Example: dora self-train -c rounds.yaml --set rounds.rounds=2 --dry-run")
def self_train(config: Config, overrides: Set = [], dry_run: DryRun = False, as_json: Json = False, verbose: Verbose = False) -> None:  # noqa: B006
    """Realign, then let the policy learn from its own judged samples, round by round, until done or stopped by a guard rail."""
    with explained(as_json):
        from flows.config.loading import load_config
        from flows.config.models import SelfTrainConfig

        _run_or_show(load_config(config, overrides, SelfTrainConfig), "promote", dry_run, as_json, verbose)


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
        from flows.cli.run import dry_study, run_study
        from flows.config.loading import load_config, load_preset
        from flows.config.models import StudyConfig

        if (config is None) == (preset is None):
            raise ConfigError(
                "a study needs --preset or -c" if config is None else "--preset and -c exclude each other",
                hint="dora study --preset quick, or: dora study -c FILE",
            )
        if preset is not None:
            loaded = load_preset(f"study-{preset.value}.yaml", overrides, StudyConfig)
        else:
            loaded = load_config(config, overrides, StudyConfig)
        if dry_run:
            dry_study(loaded, as_json=as_json)
        else:
            run_study(loaded, as_json=as_json, verbose=verbose)


@app.command(epilog="Example: dora up --postgres postgresql://dora@db.internal:5432 --artifacts s3://bucket/mlflow")
def up(
    postgres: Annotated[
        str | None,
        typer.Option(
            "--postgres",
            metavar="URL",
            help="Server for Prefect's and MLflow's data; with a password, give the URL in DORA_POSTGRES instead. none: SQLite.",
        ),
    ] = None,
    artifacts: Annotated[str | None, typer.Option("--artifacts", metavar="URI", help="MLflow's artifact root. none: a folder.")] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Listen there; anything but loopback needs DORA_AUTH=user:password.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start Prefect server and worker, MLflow and a Ray head on this machine; safe to repeat. What is chosen here is remembered."""
    with explained(as_json):
        from flows.cli.output import Out
        from flows.deployment.deploy import register
        from infra import services
        from infra.settings import Settings

        out = Out(as_json)
        chosen = {"postgres": postgres, "artifacts": artifacts, "host": host}
        settings = Settings(**{name: value for name, value in chosen.items() if value is not None})
        record = services.up(settings, on_progress=out.say, register=register)
        urls = {name: service.url for name, service in record.services.items() if service.url}
        out.links(urls)
        out.document({"services": urls})
        out.say("start a run in the Prefect UI (Deployments → realign-smoke is the quickest), or: dora realign -c FILE")


@app.command(epilog="Example: dora down")
def down(as_json: Json = False) -> None:
    """Stop what `dora up` started, and nothing else."""
    with explained(as_json):
        from flows.cli.output import Out
        from infra import services
        from infra.settings import Settings

        out = Out(as_json)
        ended = services.down(Settings())
        out.say(f"stopped {', '.join(ended)}" if ended else "nothing was running")
        out.document({"stopped": ended})


app.command(epilog="Example: dora deploy --webhook https://hooks.example.org/dora")(operate.deploy)
app.command(epilog="Example: dora reap --dry-run")(operate.reap)
app.command(epilog="Example: dora gc --older-than 30d, then: dora gc --older-than 30d --delete")(operate.gc)


@app.command(epilog="Example: dora doctor")
def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, memory, disk, ports, servers. Exit code 1 if something must be fixed."""
    with explained(as_json):
        from flows.cli.output import Out
        from infra.doctor import checks
        from infra.settings import Settings

        out = Out(as_json)
        found = checks(Settings())
        out.checks(found)
        out.document({"checks": [{"name": c.name, "ok": c.ok, "detail": c.detail, "hint": c.hint} for c in found]})
        if any(check.ok is False for check in found):
            raise typer.Exit(1)


@app.command(epilog="Example: dora report latest -o report.html")
def report(
    run: Annotated[str, typer.Argument(help="Run id or its beginning; `latest` for the last one.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: <home>/reports/RUN.html.")] = None,
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
        path = write_report(store, run_id, output or settings.root / "reports" / f"{run_id}.html")
        out = Out(as_json)
        out.say(f"report: {path}")
        out.document({"run_id": run_id, "report": str(path)})
        if open_it:
            typer.launch(path.as_uri())


@app.command(epilog="Example: dora promote demo 3 --why 'approved by the safety review'")
def promote(
    model: Annotated[str, typer.Argument(help="Name of the registered model.")],
    version: Annotated[str, typer.Argument(help="Version to make the champion.")],
    why: Annotated[str, typer.Option("--why", help="Reason, kept with the version.")] = "",
    as_json: Json = False,
) -> None:
    """Make one version the champion by hand, whatever the gate said; the old champion becomes `previous`."""
    _decide("promote", model, version, why, as_json)


@app.command(epilog="Example: dora reject demo 3 --why 'answers are too long'")
def reject(
    model: Annotated[str, typer.Argument(help="Name of the registered model.")],
    version: Annotated[str, typer.Argument(help="Version that must not become the champion.")],
    why: Annotated[str, typer.Option("--why", help="Reason, kept with the version.")],
    as_json: Json = False,
) -> None:
    """Decide against a version that waits for approval; runs with the same data do not ask about it again."""
    _decide("reject", model, version, why, as_json)


@app.command(epilog="Example: dora rollback demo")
def rollback(
    model: Annotated[str, typer.Argument(help="Name of the registered model.")],
    why: Annotated[str, typer.Option("--why", help="Reason, kept with the version.")] = "",
    as_json: Json = False,
) -> None:
    """Make the previous champion the champion again."""
    _decide("rollback", model, "", why, as_json)


def _decide(action: Literal["promote", "reject", "rollback"], model: str, version: str, why: str, as_json: bool) -> None:
    with explained(as_json):
        from flows.cli.output import Out
        from infra.settings import Settings, apply_environment
        from infra.tracking import model_registry as registry

        uri = apply_environment(Settings()).mlflow_uri
        if action == "rollback":
            version = registry.rollback(uri, model, why)
        elif action == "promote":
            registry.promote(uri, model, version, why)
        else:
            registry.reject(uri, model, version, why)
        aliases, audit = registry.aliases(uri, model), registry.history(uri, model, version)[-1]
        out = Out(as_json)
        out.say(f"{model}: version {version} is {'refused' if action == 'reject' else 'champion'}")
        out.document({"model": model, "version": version, "champion": aliases.get("champion"), "aliases": aliases, "audit": audit})

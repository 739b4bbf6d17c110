"""`dora evaluate`: a realignment up to its gate, or a comparison of two judged files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import DryRun, Json, Set, Verbose


@app.command(epilog="Example: dora evaluate -c mixture.yaml --set evaluate.twins=[erm], or: dora evaluate ours.parquet theirs.parquet")
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
            ours, theirs = files or []
            compare(ours, theirs, overrides, report, as_json)
        else:
            from flows.cli.run import run_file

            run_file(config, overrides, "evaluate", dry_run, as_json, verbose)


def compare(ours: Path, theirs: Path, overrides: list[str], report: Path | None, as_json: bool) -> None:
    """Print how often our responses win, and write it to ``report`` as Markdown."""
    from dora_core.config.method import EvaluateConfig
    from flows.cli.files.comparison import COLUMNS, compare_files, markdown, summary, table_rows
    from flows.cli.files.settings import from_options
    from flows.cli.files.tables import write_text
    from flows.cli.output import Out

    out = Out(as_json)
    facts = compare_files(ours, theirs, from_options(EvaluateConfig, {}, overrides))
    out.table(COLUMNS, table_rows(facts))
    out.say(summary(ours, facts))
    if report is not None:
        write_text(report, markdown(ours, facts))
        out.say(f"report: {report}")
    out.document(facts.dump())

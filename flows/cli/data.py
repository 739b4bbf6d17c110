"""`dora data`: preview of the inputs, and export of canonical records for other trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import Json, Set

data_app = typer.Typer(
    name="data", help="Preview preference data before a run, and export it.", no_args_is_help=True, rich_markup_mode="rich"
)
app.add_typer(data_app)


@data_app.command(epilog="Example: dora data preview -c realign.yaml -o data.html, or: dora data preview prefs.jsonl")
def preview(
    paths: Annotated[list[str] | None, typer.Argument(metavar="[PATH…]", help="Inputs, read as `dora init` would; instead of -c.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file (YAML).")] = None,
    overrides: Set = [],  # noqa: B006
    page: Annotated[Path | None, typer.Option("--output", "-o", help="Write a page too: a table to search and filter, with texts.")] = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Most rows read of an input; 0: all.")] = 20_000,
    shown: Annotated[int, typer.Option("--shown", min=0, max=100, help="Records shown whole, per input.")] = 3,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Folder or id whose template renders; default: the policy of -c.")
    ] = None,
    run: Annotated[str | None, typer.Option("--run", help="For the page: h of this run (`latest`, or an id).")] = None,
    as_json: Json = False,
) -> None:
    """Show how each input is read, with records, counts, the first bad row, and whether h can be estimated. Nothing runs.

    Exit code 0: a run would accept the data; 2: it would refuse it.
    """
    with explained(as_json):
        from dora_core.errors import ConfigError, DataError
        from flows.cli.files.data_preview import Request, preview_files

        if (config is None) == (not paths) or (paths and overrides) or (run is not None and page is None):
            raise ConfigError(
                "preview takes a configuration or inputs; --set goes with -c, and --run with -o",
                hint="dora data preview -c FILE, or: dora data preview PATH…",
            )
        refusals = preview_files(Request(paths or [], config, overrides, page, rows or None, shown, model, run), as_json)
        if refusals:
            more = f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""
            message, _, hint = refusals[0].partition(" → ")
            raise typer.Exit(2) if as_json else DataError(f"a run would refuse the data: {message}{more}", hint=hint)


@data_app.command(epilog="Example: dora data export -c realign.yaml -o pairs.jsonl --format trl-pairs")
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .parquet or .jsonl.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Configuration file (YAML); its data is read if it was not yet.")
    ] = None,
    overrides: Set = [],  # noqa: B006
    run: Annotated[str | None, typer.Option("--run", help="Records of this run instead: `latest`, or an id.")] = None,
    form: Annotated[
        Literal["trl-pairs", "trl-unpaired", "records"],
        typer.Option(
            "--format", help="trl-pairs: prompt, chosen, rejected; trl-unpaired: prompt, completion, label; records: all of them."
        ),
    ] = "trl-pairs",
    pairs: Annotated[Literal["best_worst", "all"], typer.Option("--pairs", help="Pairs of a longer list, as `align.loss.pairs`.")] = "all",
    split: Annotated[Literal["train", "eval", "both"], typer.Option("--split", help="Records of this split.")] = "both",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write the canonical records with h, weights, sources and split, for TRL or as they are.

    Ties and responses without a reward never become a preference.
    """
    with explained(as_json):
        from dora_core.errors import ConfigError
        from flows.cli.files.data_export import ExportRequest, export_records

        if (config is None) == (run is None) or (run is not None and overrides):
            raise ConfigError("export takes a configuration or a run", hint="dora data export -c FILE -o OUT, or: --run latest -o OUT")
        export_records(ExportRequest(output, config, overrides, run, form, pairs, split, overwrite), as_json)

"""`dora label`: what people should label next, and their answers as golden labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import Json, Set

if TYPE_CHECKING:
    from flows.cli.files.labelling import Source

label_app = typer.Typer(
    name="label", help="Suggest records for people to label, and import their answers.", no_args_is_help=True, rich_markup_mode="rich"
)
app.add_typer(label_app)

ConfigOrRun = Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file (YAML) whose records are calibrated.")]
Run = Annotated[str | None, typer.Option("--run", help="Records of this run instead: `latest`, or an id.")]


@label_app.command(epilog="Example: dora label suggest -c realign.yaml -n 200 -o labels")
def suggest(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the tasks to.")],
    config: ConfigOrRun = None,
    overrides: Set = [],  # noqa: B006
    run: Run = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=100_000, help="Pairs to suggest.")] = 200,
    rule: Annotated[
        Literal["information", "committee", "uncertainty"],
        typer.Option("--rule", help="information: fall of the policy's uncertainty on golden text; committee: disagreement of the race."),
    ] = "information",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sides on which the responses are shown.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of the folder that differ.")] = False,
    as_json: Json = False,
) -> None:
    """Rank unlabelled and synthetic records by what a label of people would change, and write them as tasks.

    Writes tasks.json and labelling.xml for Label Studio, labels.jsonl with a field to fill, and ranking.jsonl with the reasons. In the
    benchmark no rule made a better policy than random pairs did: see README.md.
    """
    with explained(as_json):
        from flows.cli.files.labelling import suggest_labels

        suggest_labels(_source(config, overrides, run), number, rule, seed, output, overwrite, as_json)


@label_app.command("import", epilog="Example: dora label import export.json -c realign.yaml -o data/people.jsonl")
def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Exports of Label Studio (JSON), or filled labels.jsonl.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Input file to write (JSON lines).")],
    config: ConfigOrRun = None,
    overrides: Set = [],  # noqa: B006
    run: Run = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there and differs.")] = False,
    as_json: Json = False,
) -> None:
    """Write answers as golden labels, and print the lines to add to the configuration.

    Ties and skipped tasks are counted, not written. Answers about unknown records or changed texts are refused. Several answers to a task
    become the majority's label with its share as label probability; importing all exports again gives the same file.
    """
    with explained(as_json):
        from flows.cli.files.labelling import import_labels

        import_labels(files, _source(config, overrides, run), output, overwrite, as_json)


def _source(config: Path | None, overrides: list[str], run: str | None) -> Source:
    from dora_core.errors import ConfigError
    from flows.cli.files.labelling import Source

    if (config is None) == (run is None) or (run is not None and overrides):
        raise ConfigError("give a configuration or a run", hint="dora label suggest -c FILE -o FOLDER, or: --run latest -o FOLDER")
    return Source(config, overrides, run)

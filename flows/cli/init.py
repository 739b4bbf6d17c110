"""`dora init`: a first configuration from data files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import Json


@app.command(epilog="Example: dora init prefs.jsonl --golden trusted.jsonl -o realign.yaml")
def init(
    paths: Annotated[list[str], typer.Argument(metavar="PATH…", help="Files, folders or dataset names with preference data.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Configuration to write.")] = Path("realign.yaml"),
    golden: Annotated[list[str], typer.Option("--golden", help="Trusted responses (prompt, response); repeatable.")] = [],  # noqa: B006
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Inspect data files and write a commented configuration that runs. Assumptions and open decisions are comments in it."""
    with explained(as_json):
        from dora_core.errors import ConfigError, DataError
        from flows.cli.files.tables import write_text
        from flows.cli.output import Out
        from flows.config.loading import load_config
        from flows.config.starter import starter
        from flows.report.data_preview import input_line

        out = Out(as_json)
        if output.exists() and not force:
            raise ConfigError(f"{output} exists", hint="name another file with -o, or add --force to replace it")
        with out.counting() as progress:
            made = starter(paths, golden, folder=output.parent, progress=progress)
        write_text(output, made.text)
        load_config(output)
        for item in made.preview.inputs:
            out.say(input_line(item if made.is_trusted else item.evolve(golden=[])))
        for text in made.assumed:
            out.say(f"assumed: {text}")
        for text in made.decide:
            out.say(f"to decide: {text}")
        out.say(f"{output}: written. Next: dora data preview -c {output}, then dora realign -c {output} --dry-run")
        out.document({"config": str(output), "assumed": made.assumed, "decide": made.decide, "preview": made.preview.model_dump()})
        if not made.preview.accepted:
            raise DataError(
                f"a run would refuse the data: {made.preview.refusals[0]}",
                hint=f"correct the data or {output}; dora data preview -c {output}",
            )

"""`dora generate`: responses to a file of prompts."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import AnySetting, Column, Json, KeyVariable, OutputFile, Overwrite, Server, Verbose, Workers


@app.command(epilog="Example: dora generate prompts.jsonl -o samples.parquet --model ./model --samples 4")
def generate(
    prompts: Annotated[str, typer.Argument(help="Parquet or JSON lines with a column `prompt` (strings or messages), or preference data.")],
    output: OutputFile,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Folder or Hugging Face id of the model.")] = None,
    endpoint: Server = None,
    served_model: Annotated[str | None, typer.Option("--served-model", metavar="NAME", help="The server's name for its model.")] = None,
    api_key_env: KeyVariable = None,
    samples: Annotated[int | None, typer.Option("--samples", "-n", help="Responses per prompt; default 1.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0: greedy; default 1.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Nucleus; default 1.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", help="Longest response; default 256.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="A response depends on (seed, prompt, sample number); default 0.")] = None,
    workers: Workers = None,
    columns: Column = [],  # noqa: B006
    overrides: AnySetting = [],  # noqa: B006
    overwrite: Overwrite = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write responses to a file of prompts, from a model or a server. A repeated command ends at once; an interrupted one is resumed."""
    with explained(as_json):
        from flows.cli.files.generation import generate_file
        from flows.cli.files.settings import data_source, execution_options
        from flows.cli.files.stages import FileStages
        from flows.cli.files.tables import Output
        from flows.cli.output import Out

        out = Out(as_json)
        given = {
            "model.source": model,
            "generate.served_model": served_model,
            "generate.samples": samples,
            "generate.temperature": temperature,
            "generate.top_p": top_p,
            "generate.max_new_tokens": max_new_tokens,
            "generate.seed": seed,
        } | execution_options(workers, endpoint, api_key_env)
        stages = FileStages("generate", out, verbose=verbose)
        done = generate_file(stages, data_source(prompts, columns), Output(output, overwrite), given, overrides)
        finished = f"{done.metrics['finished_fraction']:.0%} ended by themselves"
        out.say(f"{done.output}: {done.metrics['samples']:.0f} responses to {done.metrics['prompts']:.0f} prompts, {finished}")
        out.document(done.model_dump(mode="json"))

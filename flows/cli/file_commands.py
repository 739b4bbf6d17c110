"""The commands that work on files alone: ``dora generate``, ``dora judge``, and the part of ``dora evaluate`` that compares two files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.errors import explained
from flows.cli.options import Json, Verbose

File = Annotated[Path, typer.Option("--output", "-o", help="File to write: .parquet or .jsonl.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there and differs.")]
Column = Annotated[
    list[str], typer.Option("--column", metavar="FIELD=COLUMN", help="Name of a column in the file, e.g. prompt=question; repeatable.")
]
Server = Annotated[str | None, typer.Option("--endpoint", metavar="URL", help="OpenAI-compatible server, up to and including /v1.")]
KeyVariable = Annotated[str | None, typer.Option("--api-key-env", metavar="NAME", help="Environment variable with the server's key.")]
Workers = Annotated[int | None, typer.Option("--workers", min=0, help="Ray actors that share the work; 0: in this process.")]
Set = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, e.g. text.max_prompt_tokens=2048; repeatable.")
]


class JudgeKind(StrEnum):
    GOLD = "gold"
    REWARD_MODEL = "reward_model"
    IMPLICIT = "implicit"
    LLM = "llm"


def generate(
    prompts: Annotated[str, typer.Argument(help="Parquet or JSON lines with a column `prompt` (strings or messages), or preference data.")],
    output: File,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Folder or Hugging Face id of what responds.")] = None,
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
    overrides: Set = [],  # noqa: B006
    overwrite: Overwrite = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write responses to a file of prompts, from a model or a server. Repeated: at once; interrupted: goes on where it was."""
    with explained(as_json):
        from flows.cli.file_tables import Output
        from flows.cli.files import Command, GenerateOptions, data_source, generate_file, options
        from flows.cli.output import Out

        out = Out(as_json)
        given = {
            "model.source": model,
            "execution.workers": workers,
            "execution.endpoint.url": endpoint,
            "execution.endpoint.api_key_env": api_key_env,
            "generate.served_model": served_model,
            "generate.samples": samples,
            "generate.temperature": temperature,
            "generate.top_p": top_p,
            "generate.max_new_tokens": max_new_tokens,
            "generate.seed": seed,
        }
        settings = options(GenerateOptions, given, overrides)
        command = Command("generate", out, verbose=verbose)
        done = generate_file(command, data_source(prompts, columns), Output(output, overwrite), settings)
        metrics = done["metrics"]
        finished = f"{metrics['finished_fraction']:.0%} ended by themselves"
        out.say(f"{done['output']}: {metrics['samples']:.0f} responses to {metrics['prompts']:.0f} prompts, {finished}")
        out.document(done)


def judge(
    responses: Annotated[str, typer.Argument(help="What `dora generate` wrote, or columns `prompt` and `response`, or preference data.")],
    output: File,
    kind: Annotated[JudgeKind, typer.Option("--judge", help="gold is for prompts of the known mixture.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Reward model, policy (implicit), or the server's name (llm).")] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="implicit: what the policy started from.")] = None,
    endpoint: Server = None,
    api_key_env: KeyVariable = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="FILE", help="llm: compare with these responses, not a prompt's with each other.")
    ] = None,
    workers: Workers = None,
    columns: Column = [],  # noqa: B006
    overrides: Set = [],  # noqa: B006
    overwrite: Overwrite = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Add a score to every response of a file. Larger is better; null where there is no verdict."""
    with explained(as_json):
        from flows.cli.file_tables import Output
        from flows.cli.files import Command, JudgeOptions, data_source, judge_file, options
        from flows.cli.output import Out

        out = Out(as_json)
        named = {JudgeKind.REWARD_MODEL: "judge.model.source", JudgeKind.LLM: "judge.model"}.get(kind, "model.source")
        given = {
            "judge.kind": kind.value,
            named: model,
            "reference.source": reference,
            "execution.workers": workers,
            "execution.endpoint.url": endpoint,
            "execution.endpoint.api_key_env": api_key_env,
        }
        settings = options(JudgeOptions, given, overrides)
        command = Command("judge", out, verbose=verbose)
        other = None if against is None else data_source(against)
        done = judge_file(command, data_source(responses, columns), Output(output, overwrite), settings, other)
        mean, unscored = done["metrics"].get("mean_score"), done["metrics"]["unscored"]
        shown = ([] if mean is None else [f"mean {mean:.4g}"]) + ([f"{unscored:.0f} without a verdict"] if unscored else [])
        out.say(", ".join([f"{done['output']}: {done['rows']} scores", *shown]))
        out.document(done)


def evaluate(ours: Path, theirs: Path, overrides: list[str], report: Path | None, as_json: bool) -> None:
    """Print how often our responses win, and write it as Markdown where asked for: `dora evaluate OURS THEIRS`."""
    from dora_core.config.method import EvaluateConfig
    from flows.cli.file_comparison import COLUMNS, compare_files, markdown, summary, table_rows
    from flows.cli.file_tables import write_text
    from flows.cli.files import options
    from flows.cli.output import Out

    out = Out(as_json)
    facts = compare_files(ours, theirs, options(EvaluateConfig, {}, overrides))
    out.table(COLUMNS, table_rows(facts))
    out.say(summary(ours, facts))
    if report is not None:
        write_text(report, markdown(ours, facts))
        out.say(f"report: {report}")
    out.document(facts.dump())

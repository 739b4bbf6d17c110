"""`dora judge`: scores for a file of responses."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import AnySetting, Column, Json, KeyVariable, OutputFile, Overwrite, Server, Verbose, Workers


class JudgeKind(StrEnum):
    GOLD = "gold"
    REWARD_MODEL = "reward_model"
    IMPLICIT = "implicit"
    LLM = "llm"


@app.command(epilog="Example: dora judge samples.parquet -o scores.parquet --judge reward_model --model ./reward")
def judge(
    responses: Annotated[str, typer.Argument(help="Output of `dora generate`, or columns `prompt` and `response`, or preference data.")],
    output: OutputFile,
    kind: Annotated[JudgeKind, typer.Option("--judge", help="gold is for prompts of the known mixture.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Reward model, policy (implicit), or the server's name (llm).")] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="implicit: the model that the policy started from.")] = None,
    endpoint: Server = None,
    api_key_env: KeyVariable = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="FILE", help="llm: compare with these responses, not a prompt's with each other.")
    ] = None,
    workers: Workers = None,
    columns: Column = [],  # noqa: B006
    overrides: AnySetting = [],  # noqa: B006
    overwrite: Overwrite = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Add a score to every response of a file. Larger is better; null where there is no verdict."""
    with explained(as_json):
        from flows.cli.files.judging import judge_file
        from flows.cli.files.settings import data_source, execution_options
        from flows.cli.files.stages import FileStages
        from flows.cli.files.tables import Output
        from flows.cli.output import Out

        out = Out(as_json)
        named = {JudgeKind.REWARD_MODEL: "judge.model.source", JudgeKind.LLM: "judge.model"}.get(kind, "model.source")
        given: dict[str, object] = {"judge.kind": kind.value, named: model, "reference.source": reference}
        given |= execution_options(workers, endpoint, api_key_env)
        stages = FileStages("judge", out, verbose=verbose)
        other = None if against is None else data_source(against)
        done = judge_file(stages, data_source(responses, columns), Output(output, overwrite), given, overrides, other)
        mean, unscored = done.metrics.get("mean_score"), done.metrics["unscored"]
        shown = ([] if mean is None else [f"mean {mean:.4g}"]) + ([f"{unscored:.0f} without a verdict"] if unscored else [])
        out.say(", ".join([f"{done.output}: {done.rows} scores", *shown]))
        out.document(done.model_dump(mode="json"))

"""``dora judge``: a file with scores, from the stage ``judge``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from dora_core.config.data import DataSource
from dora_core.config.execution import Execution, endpoint_mistake
from dora_core.config.judging import ImplicitJudge, Judge, LLMJudge, RewardModelJudge
from dora_core.config.method import ModelConfig, TextConfig
from dora_core.errors import ConfigError
from dora_core.strict_model import StrictModel
from flows.cli.files.settings import trained
from flows.cli.files.stages import FileStages, document, with_prompts
from flows.cli.files.tables import Output, read_rows
from infra.store.store import sha256_of
from tasks.stages import judge, prompts


class JudgeOptions(StrictModel):
    """Settings of ``dora judge``; the keys of ``--set``."""

    judge: Judge = Field(description="Who judges.")
    model: ModelConfig | None = Field(None, description="The policy, for the implicit judge.")
    reference: ModelConfig | None = Field(None, description="Model that the policy started from, for the implicit judge.")
    text: TextConfig = Field(default_factory=TextConfig, description="Template and truncation, for judges that are models.")
    execution: Execution = Field(description="Workers, devices, and the server for requests.")


def judge_file(
    stages: FileStages, source: DataSource, output: Output, settings: JudgeOptions, against: DataSource | None = None
) -> dict[str, Any]:
    """Write the file's rows with a ``score`` (null: no verdict) and the ``judge`` that gave it; rows with lists of responses become a
    row per response: ``prompt, record_id, sample, response, score, judge``.

    Args:
        against: responses to the same prompts that an LLM judge compares these with; without it, it compares a prompt's with each other.

    Returns:
        Output path, counts and facts, as JSON.

    Raises:
        DoraError: see the stages; ConfigError: the judge lacks a model or a server.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    settings = _checked_judge(settings, against)
    read = prompts.plan("responses", source, against)
    spec = judge.Spec(
        records=read.ref(),
        samples=read.ref(),
        judge=settings.judge,
        model=settings.model,
        reference=settings.reference,
        text=settings.text,
        execution=settings.execution,
    )
    output.check(computed=spec.is_done(stages.store))
    records_folder, scores_folder = stages.run([read, spec])
    samples = pq.read_table(records_folder / "samples.parquet")
    scores = pq.read_table(scores_folder / "scores.parquet")["score"]
    name = pa.array([_judge_name(spec, read)] * len(samples), pa.string())
    table = samples.append_column("score", scores).append_column("judge", name).sort_by("row")
    given = read_rows(source.path) if isinstance(source.path, str) and Path(source.path).is_file() else None
    if given is not None and (source.columns.response or "response") in given.column_names:
        given = given.drop_columns([name for name in ("score", "judge") if name in given.column_names])  # of an earlier judge
        output.write(given.append_column("score", table["score"]).append_column("judge", table["judge"]))
    else:
        output.write(with_prompts(table.drop_columns(["row", "prompt_hash"]), pq.read_table(records_folder / "records.parquet")))
    return document(stages, spec, output)


def _checked_judge(settings: JudgeOptions, against: DataSource | None) -> JudgeOptions:
    """Return the judge with its model pinned; refuse missing and superfluous options."""
    chosen, changes = settings.judge, dict[str, Any]()
    implicit = isinstance(chosen, ImplicitJudge)
    if implicit != (settings.model is not None) or implicit != (settings.reference is not None):
        takes = "needs --model POLICY and --reference START" if implicit else "takes no policy and no reference"
        raise ConfigError(f"the {chosen.kind} judge {takes}", hint="--judge implicit --model POLICY --reference START judges by a policy")
    if mistake := endpoint_mistake(f"judge.kind={chosen.kind}", chosen.asks_server, "--endpoint", settings.execution.endpoint):
        raise ConfigError(mistake, hint="--judge llm --model NAME --endpoint URL uses a server")
    if against is not None or (isinstance(chosen, LLMJudge) and chosen.against == "given"):
        if against is None or not isinstance(chosen, LLMJudge):
            raise ConfigError("comparing with given responses needs an llm judge and a file of them", hint="--judge llm --against FILE")
        changes["judge"] = chosen.evolve(against="given")
    if isinstance(chosen, RewardModelJudge):
        changes["judge"] = chosen.evolve(model=trained(chosen.model, "--model"))
    for role in ("model", "reference"):
        if (model := getattr(settings, role)) is not None:
            changes[role] = trained(model, f"--{role}")
    return settings.evolve(**changes)


def _judge_name(spec: judge.Spec, read: prompts.Spec) -> str:
    """Return a name that is equal for comparable scores: kind, relative or not, and a digest of the judge's settings."""
    payload = spec.payload()
    relative = isinstance(spec.judge, LLMJudge) and spec.judge.against == "each_other"
    against = read.content[-1] if read.against is not None else None
    digest = sha256_of({name: payload[name] for name in ("judge", "model", "reference", "text")} | {"against": against})
    return f"{spec.judge.kind}{' (each other)' if relative else ''} {digest[:12]}"

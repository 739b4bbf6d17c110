"""``dora judge``: a file with scores, from the stage ``judge``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dora_core.config.data import DataSource
from dora_core.config.execution import endpoint_mistake
from dora_core.config.judging import ImplicitJudge, LLMJudge, RewardModelJudge
from dora_core.config.method import ModelConfig
from dora_core.errors import ConfigError
from dora_core.models.pinning import pin_text
from flows.cli.files.settings import from_options, trained
from flows.cli.files.stages import Done, FileStages, with_prompts
from flows.cli.files.tables import Output, read_rows
from infra.store.store import sha256_of
from tasks.stages import judge, prompts


def judge_file(
    stages: FileStages,
    source: DataSource,
    output: Output,
    given: Mapping[str, object],
    overrides: Sequence[str],
    against: DataSource | None = None,
) -> Done:
    """Write the file's rows with a ``score`` (null: no verdict) and the ``judge`` that gave it; rows with lists of responses become a
    row per response: ``prompt, record_id, sample, response, score, judge``.

    Args:
        given, overrides: fields of the stage's spec, see :func:`flows.cli.files.settings.from_options`.
        against: responses to the same prompts that an LLM judge compares these with; without it, it compares a prompt's with each other.

    Raises:
        DoraError: see the stages; ConfigError: the judge lacks a model or a server.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    read = prompts.plan("responses", source, against)
    spec = _spec(read, given, overrides)
    output.check(computed=spec.is_done(stages.store))
    records_folder, scores_folder = stages.run([read, spec])
    samples = pq.read_table(records_folder / "samples.parquet")
    scores = pq.read_table(scores_folder / "scores.parquet")["score"]
    name = pa.array([_judge_name(spec, read)] * len(samples), pa.string())
    table = samples.append_column("score", scores).append_column("judge", name).sort_by("row")
    rows = read_rows(source.path) if isinstance(source.path, str) and Path(source.path).is_file() else None
    if rows is not None and (source.columns.response or "response") in rows.column_names:
        rows = rows.drop_columns([name for name in ("score", "judge") if name in rows.column_names])  # of an earlier judge
        output.write(rows.append_column("score", table["score"]).append_column("judge", table["judge"]))
    else:
        output.write(with_prompts(table.drop_columns(["row", "prompt_hash"]), pq.read_table(records_folder / "records.parquet")))
    return stages.done(spec, output)


def _spec(read: prompts.Spec, given: Mapping[str, object], overrides: Sequence[str]) -> judge.Spec:
    """Return the spec with its models pinned; missing and superfluous options are refused."""
    fixed = {"records": read.ref(), "samples": read.ref(), "split": "eval"}
    hint = "--judge implicit --model POLICY --reference START judges by a policy, --judge llm --model NAME --endpoint URL uses a server"
    spec = from_options(judge.Spec, given, overrides, fixed=fixed, hint=hint)
    chosen = spec.judge
    if not isinstance(chosen, ImplicitJudge) and (spec.model is not None or spec.reference is not None):
        raise ConfigError(f"the {chosen.kind} judge takes no policy and no reference", hint=hint)
    if mistake := endpoint_mistake(f"judge.kind={chosen.kind}", chosen.asks_server, "--endpoint", spec.execution.endpoint):
        raise ConfigError(mistake, hint=hint)
    if read.against is not None or (isinstance(chosen, LLMJudge) and chosen.against == "given"):
        if read.against is None or not isinstance(chosen, LLMJudge):
            raise ConfigError("comparing with given responses needs an llm judge and a file of them", hint="--judge llm --against FILE")
        return spec.evolve(judge=chosen.evolve(against="given"))
    if isinstance(chosen, RewardModelJudge):
        model = trained(chosen.model, "--model")
        return spec.evolve(judge=chosen.evolve(model=model), text=pin_text(spec.text, model))
    roles = {"model": spec.model, "reference": spec.reference}
    pinned = {role: trained(model, f"--{role}") for role, model in roles.items() if isinstance(model, ModelConfig)}
    return spec.evolve(**pinned, **({"text": pin_text(spec.text, pinned["model"])} if "model" in pinned else {}))


def _judge_name(spec: judge.Spec, read: prompts.Spec) -> str:
    """Return a name that is equal for comparable scores: kind, relative or not, and a digest of the judge's settings."""
    payload = spec.payload()
    relative = isinstance(spec.judge, LLMJudge) and spec.judge.against == "each_other"
    against = read.content[-1] if read.against is not None else None
    digest = sha256_of({name: payload[name] for name in ("judge", "model", "reference", "text")} | {"against": against})
    return f"{spec.judge.kind}{' (each other)' if relative else ''} {digest[:12]}"

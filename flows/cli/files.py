"""What ``dora generate`` and ``dora judge`` do with files, without a configuration, a flow or a server of ours.

They are the stages of a realignment (``tasks/stages/generate.py``, ``tasks/stages/judge.py``) after one that reads the file
(``tasks/stages/prompts.py``), so
they are cached by content and settings, and an interrupted command goes on where it was. They run in this process; with
``execution.workers`` > 0 as jobs on Ray.

Left out: MLflow and Prefect (nothing here is a run of a project), and training a judge on a file: that is ``dora self-train``.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field

from dora_core.config.execution import Execution
from dora_core.config.judging import ImplicitJudge, Judge, LLMJudge, RewardModelJudge
from dora_core.config.method import Columns, DataSource, GenerateConfig, ModelConfig, TextConfig
from dora_core.errors import ConfigError, did_you_mean
from dora_core.models.pinning import pin
from dora_core.strict_model import StrictModel
from flows.cli.file_tables import Output, read_rows
from flows.cli.output import Out
from flows.config.loading import validate
from flows.config.yaml_text import apply_override
from flows.planning.plan import Plan, PlannedStage
from flows.running.jobs import run_as_job
from flows.running.session import Observer, Ray
from infra.settings import Settings, apply_environment
from infra.store.journal import JournalPart, JournalReader
from infra.store.store import Store, sha256_of
from tasks.runtime.stage import StageSpec, execute, prepare_process, write_spec
from tasks.stages import generate, judge, prompts
from tasks.stages.registry import STAGES

if TYPE_CHECKING:
    import pyarrow as pa

OptionsT = TypeVar("OptionsT", bound=StrictModel)


class GenerateOptions(StrictModel):
    """Settings of ``dora generate``; the keys of ``--set``."""

    model: ModelConfig | None = Field(None, description="What responds, unless a server does.")
    generate: GenerateConfig = Field(default_factory=GenerateConfig, description="Sampling.")
    text: TextConfig = Field(default_factory=TextConfig, description="Template and truncation of prompts.")
    execution: Execution = Field(description="Where it runs, and the server that is asked.")


class JudgeOptions(StrictModel):
    """Settings of ``dora judge``; the keys of ``--set``."""

    judge: Judge = Field(description="Who judges.")
    model: ModelConfig | None = Field(None, description="The policy, for the implicit judge.")
    reference: ModelConfig | None = Field(None, description="What the policy started from, for the implicit judge.")
    text: TextConfig = Field(default_factory=TextConfig, description="Template and truncation, for judges that are models.")
    execution: Execution = Field(description="Where it runs, and the server that is asked.")


def options(kind: type[OptionsT], given: Mapping[str, Any], overrides: Sequence[str]) -> OptionsT:
    """Validated settings: ``given`` by options of their own (None: not given), then ``--set``.

    Args:
        given: by key path, e.g. ``{"generate.samples": 4}``.

    Raises:
        ConfigError: with all mistakes.
    """
    raw: dict[str, Any] = {"execution": {"workers": 0}} if "execution" in kind.model_fields else {}
    for path, value in given.items():
        if value is not None:
            *parents, last = path.split(".")
            section = raw
            for parent in parents:
                section = section.setdefault(parent, {})
            section[last] = value
    for assignment in overrides:
        apply_override(raw, assignment)
    try:
        return validate(raw, place="the options", folder=Path.cwd(), model=kind)
    except ConfigError as error:
        raise ConfigError(error.message, hint=f"--set takes keys of {', '.join(kind.model_fields)}") from None


def data_source(path: Path | str, columns: Sequence[str] = ()) -> DataSource:
    """A file with ``FIELD=COLUMN`` mappings.

    Raises:
        ConfigError: a mapping of another form, or of an unknown field.
    """
    mapping = dict(item.partition("=")[::2] for item in columns)
    for field, column in mapping.items():
        if field not in Columns.model_fields or not column:
            raise ConfigError(
                f"--column {field}={column}: expected FIELD=COLUMN", hint=f"fields: {did_you_mean(field, Columns.model_fields)}"
            )
    return DataSource(path=str(path), columns=Columns(**mapping))


class Command:
    """Runs stages in this process or on Ray, with progress, through the place's store."""

    def __init__(self, name: str, out: Out, *, verbose: bool = False):
        prepare_process()
        self._name, self._out, self._verbose, self._settings = name, out, verbose, Settings()
        self.store = Store(self._settings.store_uri)

    def run(self, specs: Sequence[StageSpec]) -> list[Path]:
        """Folders with the stages' files. Stages whose result is there are not run.

        Raises:
            DoraError: a stage's own error; what is finished of it is kept, and the next call goes on from there.
        """
        plan = Plan("files", tuple(_planned(spec, self.store) for spec in specs), {})
        with self._cluster(plan) as ray, _logging(self._verbose), self._out.watching(self._verbose) as observer:
            observer.planned(self._name, plan)
            for stage in plan.stages:
                self._bring(stage, observer, ray)
        return [self.store.fetch(spec.stage, spec.digest()) for spec in specs]

    @contextmanager
    def _cluster(self, plan: Plan) -> Iterator[Ray | None]:
        """What the plan's jobs run on; None where all stages run in this process."""
        widths = [s.spec.execution.workers * s.spec.execution.cpus_per_worker for s in plan.to_run if _on_ray(s)]
        if not widths:
            yield None
            return
        ray = Ray(self._settings, apply_environment(self._settings))
        ray.warm_up(f"{self._name}-{os.getpid()}", math.ceil(max(widths)))
        try:
            yield ray
        finally:
            ray.close()

    def _bring(self, stage: PlannedStage, observer: Observer, ray: Ray | None) -> None:
        if stage.cached:
            observer.finished(stage, "cached", self.store.read_result(stage.stage, stage.digest))
            return
        observer.started(stage)
        try:
            journal = JournalReader(self.store, stage.stage, stage.digest)
            list(journal.new_events())  # of an earlier attempt
            with journal.following(lambda part: _show(observer, stage, part)):
                if ray is not None and _on_ray(stage):
                    run_as_job(ray.jobs(), stage.spec, self.store, on_log=lambda line: observer.log(stage, line))
                else:
                    write_spec(stage.spec, self.store)  # tells `dora gc` what this one reads
                    execute(stage.spec, STAGES[stage.stage].run, self.store)
        except BaseException as error:
            observer.finished(stage, "failed" if isinstance(error, Exception) else "cancelled", None)
            raise
        observer.finished(stage, "ran", self.store.read_result(stage.stage, stage.digest))


def _show(observer: Observer, stage: PlannedStage, part: JournalPart) -> None:
    for event in part.events:
        observer.event(stage, event)


@contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """The stages' log, warnings alone unless asked for."""
    logger = logging.getLogger("dora")
    before = logger.level
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _planned(spec: StageSpec, store: Store) -> PlannedStage:
    cached = spec.is_done(store)
    reason = "cached: same content and settings" if cached else "runs: its result is not in the store"
    return PlannedStage(spec.stage, spec, cached, reason, seconds=None)


def _on_ray(stage: PlannedStage) -> bool:
    return not stage.is_local and stage.spec.execution.workers > 0


# ------------------------------------------------------------------------------------------------------------- generate


def generate_file(command: Command, source: DataSource, output: Output, settings: GenerateOptions) -> dict[str, Any]:
    """Write ``prompt, record_id, sample, response, tokens, finished`` (and ``task`` where there is one), ordered as the prompts are.

    Returns:
        Output path, counts and facts, as JSON.

    Raises:
        DoraError: see the stages; ConfigError: both or neither of a model and a server.
    """
    import pyarrow.parquet as pq

    served, endpoint = settings.generate.served_model, settings.execution.endpoint
    if (settings.model is None) == (endpoint is None) or (served is None) != (endpoint is None):
        raise ConfigError(
            "either a model responds or a server does", hint="give --model FOLDER_OR_ID, or --endpoint URL with --served-model NAME"
        )
    read = prompts.plan("prompts", source)
    spec = generate.Spec(
        records=read.ref(),
        policy=None,
        model=ModelConfig() if settings.model is None else _trained(settings.model, "--model"),
        text=settings.text,
        generate=settings.generate,
        execution=settings.execution,
    )
    output.check(computed=spec.is_done(command.store))
    records_folder, samples_folder = command.run([read, spec])
    table = pq.read_table(samples_folder / "samples.parquet").drop_columns(["prompt_hash"])
    output.write(_with_prompts(table, pq.read_table(records_folder / "records.parquet")))
    return _document(command, spec, output)


def _trained(model: ModelConfig, option: str) -> ModelConfig:
    """Pinned, so that the result belongs to these weights. ``tiny`` has none."""
    if model.is_tiny:
        raise ConfigError(f"{option}: no trained model is named", hint="give a folder with config.json and *.safetensors, or an id")
    folder = Path(model.source).expanduser()
    return pin(model.model_copy(update={"source": str(folder.resolve())}) if folder.is_dir() else model)


def _with_prompts(table: pa.Table, records: pa.Table) -> pa.Table:
    """``table`` behind the prompt of each record: a string where all are one user message, else messages; ``task`` last, if any has one."""
    import pyarrow as pa

    from dora_core.data.encoding import plain_prompt

    messages = records["prompt"].to_pylist()
    plain = all(len(prompt) == 1 and prompt[0]["role"] == "user" for prompt in messages)
    texts = pa.array([plain_prompt(prompt) for prompt in messages]) if plain else records["prompt"].combine_chunks()
    place_of = {record: place for place, record in enumerate(records["record_id"].to_pylist())}
    places = pa.array([place_of[record] for record in table["record_id"].to_pylist()], pa.int64())
    table = table.add_column(0, "prompt", texts.take(places))
    if records["task"].null_count < len(records):
        table = table.append_column("task", records["task"].take(places))
    return table


# ---------------------------------------------------------------------------------------------------------------- judge


def judge_file(
    command: Command, source: DataSource, output: Output, settings: JudgeOptions, against: DataSource | None = None
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
    output.check(computed=spec.is_done(command.store))
    records_folder, scores_folder = command.run([read, spec])
    samples = pq.read_table(records_folder / "samples.parquet")
    scores = pq.read_table(scores_folder / "scores.parquet")["score"]
    name = pa.array([_judge_name(spec, read)] * len(samples), pa.string())
    table = samples.append_column("score", scores).append_column("judge", name).sort_by("row")
    given = read_rows(source.path) if Path(source.path).is_file() else None
    if given is not None and (source.columns.response or "response") in given.column_names:
        given = given.drop_columns([name for name in ("score", "judge") if name in given.column_names])  # of an earlier judge
        output.write(given.append_column("score", table["score"]).append_column("judge", table["judge"]))
    else:
        output.write(_with_prompts(table.drop_columns(["row", "prompt_hash"]), pq.read_table(records_folder / "records.parquet")))
    return _document(command, spec, output)


def _checked_judge(settings: JudgeOptions, against: DataSource | None) -> JudgeOptions:
    """Everything the judge needs is there and pinned, and nothing that it would ignore."""
    chosen, changes = settings.judge, dict[str, Any]()
    implicit = isinstance(chosen, ImplicitJudge)
    if implicit != (settings.model is not None) or implicit != (settings.reference is not None):
        takes = "needs --model POLICY and --reference START" if implicit else "takes no policy and no reference"
        raise ConfigError(f"the {chosen.kind} judge {takes}", hint="--judge implicit --model POLICY --reference START judges by a policy")
    if isinstance(chosen, LLMJudge) != (settings.execution.endpoint is not None):
        takes = "needs" if isinstance(chosen, LLMJudge) else "takes no"
        raise ConfigError(f"the {chosen.kind} judge {takes} --endpoint URL", hint="--judge llm --model NAME --endpoint URL asks a server")
    if against is not None or (isinstance(chosen, LLMJudge) and chosen.against == "given"):
        if against is None or not isinstance(chosen, LLMJudge):
            raise ConfigError("comparing with given responses needs an llm judge and a file of them", hint="--judge llm --against FILE")
        changes["judge"] = chosen.model_copy(update={"against": "given"})
    if isinstance(chosen, RewardModelJudge):
        changes["judge"] = chosen.model_copy(update={"model": _trained(chosen.model, "--model")})
    for role in ("model", "reference"):
        if (model := getattr(settings, role)) is not None:
            changes[role] = _trained(model, f"--{role}")
    return settings.model_copy(update=changes)


def _judge_name(spec: judge.Spec, read: prompts.Spec) -> str:
    """Equal for scores that can be compared: kind, relative or not, and a digest of all that the judge is."""
    payload = spec.payload()
    relative = isinstance(spec.judge, LLMJudge) and spec.judge.against == "each_other"
    against = read.content[-1] if read.against is not None else None
    digest = sha256_of({name: payload[name] for name in ("judge", "model", "reference", "text")} | {"against": against})
    return f"{spec.judge.kind}{' (each other)' if relative else ''} {digest[:12]}"


def _document(command: Command, spec: StageSpec, output: Output) -> dict[str, Any]:
    result = command.store.read_result(spec.stage, spec.digest())
    assert result is not None
    kept = {name: result[name] for name in ("rows", "metrics", "facts")}
    return {"output": str(output.path), "stage": spec.stage, "digest": spec.digest()} | kept

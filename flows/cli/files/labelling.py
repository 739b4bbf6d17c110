"""`dora label suggest` and `dora label import`: from a finished run to pairs for people, and from their answers to golden labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dora_core.errors import ConfigError, DataError
from dora_core.selection.acquisition import Rule
from flows.cli.files.data_preview import load_any
from flows.cli.files.label_tasks import Counted, Label, Task, Vote, count_votes, read_votes, write_tasks
from flows.cli.files.stages import FileStages
from flows.cli.files.tables import Output, write_text
from flows.cli.output import Out
from flows.config.models import RealignConfig
from flows.planning.plan import build_plan
from flows.report.find import find_run, manifest_of
from infra.settings import Settings, apply_environment
from infra.store.store import Store
from tasks.runtime.spec import StageRef
from tasks.tables.artifacts import RECORDS_FILE, SUGGESTIONS_FILE
from tasks.tables.rows import record_batches

if TYPE_CHECKING:
    from tasks.stages.suggest import Spec

LABELLED_BY = "labelled_by"
"""Carried column of imported labels, for ``trust.labeller``."""
SHOWN = 3


@dataclass(frozen=True)
class Source:
    """Where the records come from: a configuration, or a run."""

    config: Path | None
    overrides: Sequence[str]
    run: str | None


@dataclass(frozen=True)
class Given:
    """Records to label, with the settings of their run."""

    config: RealignConfig
    records: StageRef
    calibration: StageRef | None


def suggest_labels(source: Source, number: int, rule: Rule, seed: int, folder: Path, overwrite: bool, as_json: bool) -> None:
    """Rank the records and write the tasks.

    Raises:
        ConfigError: the folder has other tasks, or the run has no records. DataError: there is nothing to label.
    """
    out, stages = Out(as_json), FileStages("label suggest", Out(as_json))
    given = _given(source, stages, ranked=True)
    spec = _spec(given, number, rule)
    (found,) = stages.run([spec])
    rows = _suggestions(found / SUGGESTIONS_FILE)
    records = stages.store.fetch(given.records.stage, given.records.digest) / RECORDS_FILE
    tasks = _tasks(records, rows, seed)
    ranking = "".join(json.dumps(row) + "\n" for row in rows)
    files = write_tasks(tasks) | {"ranking.jsonl": ranking}
    if not overwrite and (other := [name for name, text in files.items() if _differs(folder / name, text)]):
        raise ConfigError(
            f"{folder} holds {', '.join(other)} with other content, perhaps answers",
            hint="name another folder with -o, or add --overwrite to replace them",
        )
    for name, text in files.items():
        write_text(folder / name, text)
    facts = stages.done(spec, Output(folder)).facts
    out.say(
        f"{folder}: {len(tasks)} of {facts['candidates']} pairs, of {facts['prompts']} prompts; by their present label: {facts['sources']}"
    )
    for warning in facts["warnings"]:  # type: ignore[union-attr]
        out.say(f"note: {warning}")
    out.say("  tasks.json and labelling.xml: import into a Label Studio project; or fill `preferred` in labels.jsonl (a, b, tie, skip)")
    out.say(
        f"  ranking.jsonl says why each was chosen; keep it from the people who label. Then: dora label import ANSWERS {_named(source)}"
    )
    out.document({"output": str(folder), "tasks": len(tasks), "rule": rule, "facts": facts})


def import_labels(files: Sequence[Path], source: Source, output: Path, overwrite: bool, as_json: bool) -> None:
    """Check the answers against the records and write the labels as an input.

    Raises:
        DataError: an answer is about no record of the data, or its texts are not the record's. ConfigError: the output has other content.
    """
    out, stages = Out(as_json), FileStages("label import", Out(as_json))
    given = _given(source, stages, ranked=False)
    votes = [vote for path in files for vote in read_votes(path)]
    found = _records(stages.store.fetch(given.records.stage, given.records.digest) / RECORDS_FILE, {vote.task.record_id for vote in votes})
    _check(votes, found)
    counted = count_votes(votes)
    column, name = given.config.trust.labeller or LABELLED_BY, _person(given.config)
    text = "".join(json.dumps(_row(label, found[label.record_id], column, name), ensure_ascii=False) + "\n" for label in counted.labels)
    if not counted.labels:
        raise DataError(f"no answer is a preference: {_in_words(counted)}", hint="answer some tasks first")
    if not overwrite and _differs(output, text):
        raise ConfigError(f"{output} exists and holds other labels", hint="name another file with -o, or add --overwrite to replace it")
    write_text(output, text)
    lines = _configuration(given.config, output, column)
    out.say(f"{output}: {len(counted.labels)} labels of people; {_in_words(counted)}. Add to the configuration:")
    out.say(lines)
    out.document({"output": str(output), "counts": dict(counted.counts), "configuration": yaml.safe_load(lines)})


# ------------------------------------------------------------------------------------------------------ records of a run


def _given(source: Source, stages: FileStages, *, ranked: bool) -> Given:
    """The records, with their calibration where they are to be ``ranked``; all given ones otherwise."""
    if source.config is None:
        return _of_run(stages.store, source.run or "", ranked)
    config = load_any(source.config, source.overrides)
    return _of_config(config, source.config, stages, ranked)


def _of_config(config: RealignConfig, path: Path, stages: FileStages, ranked: bool) -> Given:
    registry = apply_environment(Settings()).mlflow_uri if config.continues else None
    plan = build_plan(config, stages.store, until="calibrate", mlflow_uri=registry)
    calibrate = next(stage for stage in plan.stages if stage.stage == "calibrate")
    if ranked and calibrate.cached:
        return Given(config, calibrate.spec.inputs()["records"], calibrate.spec.ref())
    if ranked and config.needs_calibration:
        raise ConfigError(
            f"nothing was calibrated yet for {path}, and the ranking reads h",
            hint=f"run it first: dora calibrate -c {path}, or dora realign",
        )
    ingest = plan.stages[0].spec
    stages.run([ingest])
    return Given(config, ingest.ref(), None)


def _of_run(store: Store, query: str, ranked: bool) -> Given:
    run_id = find_run(store, query)
    run = manifest_of(store, run_id)
    done = {entry.stage: StageRef(stage=entry.stage, digest=entry.digest) for entry in reversed(run.stages) if entry.is_finished}
    if "ingest" not in done:
        raise ConfigError(f"{run_id} has no records: it did not get that far", hint="name another run, or a configuration with -c")
    config = RealignConfig.model_validate({name: value for name, value in run.config.items() if name in RealignConfig.model_fields})
    if not ranked or "calibrate" not in done:
        return Given(config, done["ingest"], None)
    result = store.read_result("calibrate", done["calibrate"].digest)
    if result is None:
        raise ConfigError(f"the calibration of {run_id} was deleted", hint=f"run it again: dora realign; or name another run than {query}")
    return Given(config, StageRef.model_validate(result["spec"]["records"]), done["calibrate"])


def _spec(given: Given, number: int, rule: Rule) -> Spec:
    from tasks.stages import suggest

    config = given.config
    return suggest.Spec(
        records=given.records,
        calibration=given.calibration,
        number=number,
        rule=rule,
        trust=config.trust,
        exchange=config.exchange,
        race=config.race,
        golden_sources=config.data.golden_sources,
        aggregate=config.calibration.aggregate if given.calibration else "mean",
        execution=config.execution.of("race").evolve(workers=0, gpus_per_worker=0.0),
    )


# ---------------------------------------------------------------------------------------------------------------- tasks


def _suggestions(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def _tasks(records: Path, rows: list[dict[str, Any]], seed: int) -> list[Task]:
    from dora_core.data.encoding import plain_prompt

    found = _records(records, {row["record_id"] for row in rows})
    tasks = []
    for row in rows:
        record = found[row["record_id"]]
        pair = record["responses"][row["first"]], record["responses"][row["second"]]
        tasks.append(Task.of(row["record_id"], plain_prompt(record["prompt"]), pair, seed))
    return tasks


def _records(records: Path, wanted: set[str]) -> dict[str, dict[str, Any]]:
    columns = ["record_id", "prompt", "responses", "sources", "task"]
    found: dict[str, dict[str, Any]] = {}
    for batch in record_batches(records, columns, "train"):
        places = [i for i, record_id in enumerate(batch["record_id"].to_pylist()) if record_id in wanted]
        found |= {row["record_id"]: row for row in batch.take(places).to_pylist()} if places else {}
    return found


def _differs(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") != text


# -------------------------------------------------------------------------------------------------------------- answers


def _check(votes: Sequence[Vote], records: dict[str, dict[str, Any]]) -> None:
    """Refuse answers about other records or other texts: a label of another text is silently wrong."""
    from dora_core.data.encoding import plain_prompt

    unknown = sorted({vote.task.record_id for vote in votes} - records.keys())
    if unknown:
        raise DataError(
            f"{len(unknown)} answers are about no training record of this data: {', '.join(unknown[:SHOWN])}",
            hint="name the configuration or the run (--run) that the tasks were suggested from",
        )
    changed = [
        vote.task.record_id
        for vote in votes
        if vote.task.prompt != plain_prompt(records[vote.task.record_id]["prompt"])
        or vote.task.a == vote.task.b
        or not {vote.task.a, vote.task.b} <= set(records[vote.task.record_id]["responses"])
    ]
    if changed:
        shown = ", ".join(list(dict.fromkeys(changed))[:SHOWN])
        raise DataError(
            f"{len(changed)} answers are about other texts than the records have: {shown}",
            hint="texts must stay as suggested; suggest again if the data changed since, and have them labelled anew",
        )


def _row(label: Label, record: dict[str, Any], column: str, name: str) -> dict[str, Any]:
    from dora_core.data.encoding import chat_turns

    source_of = dict(zip(record["responses"], record["sources"], strict=True))
    row = {
        "id": f"{label.record_id}~people",
        "prompt": chat_turns(record["prompt"])[0],
        "chosen": label.chosen,
        "rejected": label.rejected,
        "chosen_source": source_of[label.chosen],
        "rejected_source": source_of[label.rejected],
        "task": record["task"],
        "label_probability": label.probability,
        column: name,
        "annotators": ", ".join(label.annotators) or None,
    }
    return {key: value for key, value in row.items() if value is not None}


def _person(config: RealignConfig) -> str:
    """The name under which people's labels are golden."""
    return config.data.golden_sources[0].removesuffix("*") or "human"


def _in_words(counted: Counted) -> str:
    shown = ("ties", "skipped", "not answered", "contested")
    return ", ".join(f"{name}: {counted.counts[name]}" for name in shown) + f" of {counted.counts['tasks']} tasks"


def _configuration(config: RealignConfig, output: Path, column: str) -> str:
    """The lines that make the labels golden.

    They are labels of people on responses of models: an input of ``data.train`` with ``trust.labeller``. Responses of ``data.golden`` are
    trusted as texts; these there would teach the classifiers that models' responses are people's.
    """
    columns = {"label_probability": "label_probability"}
    source = {"path": str(output), "preset": "none", "shape": "pair", "columns": columns, "carry": [column, "annotators"]}
    trust: dict[str, Any] = {"labeller": column}
    if not config.races and config.align.loss.reads_label_probability:
        trust["apply"] = "soft_label"
    return yaml.safe_dump({"data": {"train": [source]}, "trust": trust}, sort_keys=False, allow_unicode=True).rstrip()


def _named(source: Source) -> str:
    return f"-c {source.config}" if source.config else f"--run {source.run}"

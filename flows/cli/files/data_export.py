"""`dora data export`: the records of a configuration or a run as a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dora_core.errors import DataError
from flows.cli.files.data_preview import load_any
from flows.cli.files.run_tables import Tables, tables_of_run
from flows.cli.files.stages import FileStages
from flows.cli.files.tables import Output
from flows.cli.output import Out
from flows.planning.plan import build_plan
from infra.settings import Settings, apply_environment
from infra.store.store import Store
from tasks.tables.artifacts import CALIBRATION_FILE, RECORDS_FILE
from tasks.tables.preference_export import Format, Pairs, export_rows, export_schema


@dataclass(frozen=True)
class ExportRequest:
    """Arguments of the command: either a configuration or a run."""

    output: Path
    config: Path | None
    overrides: list[str]
    run: str | None
    form: Format
    pairs: Pairs
    split: Literal["train", "eval", "both"]
    overwrite: bool


def export_records(request: ExportRequest, as_json: bool) -> None:
    """Write the file and print exact counts.

    Raises:
        ConfigError: the output cannot be written, or the run has no records.
        DataError: an input of the configuration.
    """
    out, output = Out(as_json), Output(request.output, request.overwrite)
    output.check(computed=False)
    tables = (
        _of_config(request.config, request.overrides, out)
        if request.config
        else tables_of_run(Store(Settings().store_uri), request.run or "")
    )
    counts: Counter[str] = Counter()
    rows = export_rows(
        tables.records, tables.factors, request.form, counts, pairs=request.pairs, split=request.split, aggregate=tables.aggregate
    )
    if output.path.suffix == ".parquet" and request.form != "records":
        rows = _without_tool_calls(rows)
    with out.counting() as progress:
        output.write_rows(rows, export_schema(tables.records, request.form), lambda done: progress("rows written", done, None))
    out.say(f"{request.output}: {counts['rows']:,} rows of {counts['records']:,} records of {tables.name}")
    for name in ("records without a preference", "tied pairs", "responses without a reward"):
        if counts[name]:
            kept = "kept as they are" if request.form == "records" else "left out"
            out.say(f"  {counts[name]:,} {name}: {kept}")
    if tables.factors is None:
        hint = f"dora calibrate -c {request.config}" if request.config else "name a run with objective dora"
        out.say(f"  h is null and weights are those of the data: nothing is calibrated yet ({hint})")
    out.document(
        {"output": str(request.output), "format": request.form, "calibrated": tables.factors is not None}
        | {
            name.replace(" ", "_"): counts[name]
            for name in ("records", "rows", "records without a preference", "tied pairs", "responses without a reward")
        }
    )


def _without_tool_calls(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, as long as their messages are role and content alone: a Parquet column has one schema for all messages.

    Raises:
        DataError: a message has a tool call.
    """
    for row in rows:
        if any(message.keys() > {"role", "content"} for message in row["prompt"]):
            raise DataError(
                f"record {row['record_id']} has tool calls in its prompt, which a Parquet column of messages cannot hold",
                hint="write a .jsonl file, or --format records",
            )
        yield row


def _of_config(path: Path, overrides: list[str], out: Out) -> Tables:
    config = load_any(path, overrides)
    stages = FileStages("export", out)
    registry = apply_environment(Settings()).mlflow_uri if config.continues else None
    plan = build_plan(config, stages.store, until="calibrate", mlflow_uri=registry)
    found = {stage.stage: stage for stage in plan.stages}
    (folder,) = stages.run([found["ingest"].spec])
    calibrate = found["calibrate"]
    factors = stages.store.fetch("calibrate", calibrate.digest) / CALIBRATION_FILE if calibrate.cached else None
    return Tables(config.project, folder / RECORDS_FILE, factors, config.calibration.aggregate)

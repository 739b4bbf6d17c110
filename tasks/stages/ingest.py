"""Stage ``ingest``: read every input, validate each row, write the canonical tables. Runs in the flow's own process.

Input: the files and dataset names of ``data``, unchanged since they were fingerprinted at plan time.
Output: ``records.parquet``, ``golden.parquet``, ``quarantine.parquet`` (schemas in ``dora_core/data/records.py``).
Guarantee: rows keep the order of the inputs, bad rows are all in quarantine with all their reasons, and the bytes depend
only on the spec. ``rows_in`` = records + golden rows + the sum of ``bad_by_reason``, where a row counts once, by its first error. A row is
kept unchanged or dropped whole, never clipped. Control characters in a text are kept, and so is a response that a list has twice: two
draws of the mixture, which the facts count (a judge may even reward them differently).
Cost: inputs are read twice (checksum, rows); memory holds one row group and all record ids.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from dora_core.config.data import DataConfig, DataSource
from dora_core.data.fingerprints import FingerprintMemory
from dora_core.data.inputs import InputFile, changed_sources, inputs_of, open_input
from dora_core.data.problems import Problem
from dora_core.data.records import (
    GOLDEN_SCHEMA,
    QUARANTINE_SCHEMA,
    RECORDS_SCHEMA,
    Record,
    Rules,
    golden_table,
    is_golden_source,
    parse_row,
    records_table,
)
from dora_core.errors import DataError
from dora_core.strict_model import StrictModel
from infra.settings import Settings
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.facts import Facts as BaseFacts
from tasks.runtime.stage import StageContext, StageOutput, StageSpec
from tasks.tables.artifacts import GOLDEN_FILE, QUARANTINE_FILE, RECORDS_FILE

UNKNOWN = "(unknown)"  # name of a null source in facts; the parentheses distinguish it from real names
GROUP_ROWS = 8192
GROUP_CHARS = 64_000_000
PROGRESS_ROWS = 2000
Row = TypeVar("Row")


class Spec(StageSpec):
    stage: ClassVar[str] = "ingest"
    version: ClassVar[int] = 2  # records have a task
    placement: ClassVar[Literal["job", "local"]] = "local"

    data: DataConfig
    fingerprints: dict[str, str]


class Splits(StrictModel):
    """Records by split."""

    train: int
    eval: int


class SourceFacts(StrictModel):
    """Responses of one source."""

    responses: int
    share: float = Field(description="Of all responses.")
    mean_chars: float
    measured_rewards: int = Field(description="Responses with a reward.")


class Facts(BaseFacts):
    """See the module docstring."""

    rows_in: int
    rows_bad: int
    golden_rows: int = Field(description="Good rows of data.golden.")
    bad_by_reason: dict[str, int]
    repeated_responses: int | None = Field(None, description="Responses that their list has twice; absent before that was counted.")
    records: Splits
    sources: dict[str, SourceFacts]
    fingerprint: str = Field(description="sha256 over kind, id and content of every good row, in order.")


class _Writer(Generic[Row]):
    """Parquet writer with row groups cut by rows and characters, so that the bytes do not depend on the batches of the input."""

    def __init__(self, path: Path, schema: pa.Schema, to_table: Callable[[list[Row]], pa.Table]):
        self._file = pq.ParquetWriter(path, schema, compression="zstd")
        self._to_table = to_table
        self._pending: list[Row] = []
        self._chars = 0

    def add(self, row: Row, chars: int = 0) -> None:
        self._pending.append(row)
        self._chars += chars
        if len(self._pending) >= GROUP_ROWS or self._chars >= GROUP_CHARS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._pending:
            self._file.write_table(self._to_table(self._pending))
        self._pending, self._chars = [], 0


@dataclass
class _Tally:
    """Counts of one kind of input (train, golden)."""

    rows: int = 0
    bad: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    ids: set[str] = field(default_factory=set)

    @property
    def good(self) -> int:
        return self.rows - self.bad


@dataclass
class _SourceTally:
    responses: int = 0
    chars: int = 0
    measured: int = 0


class _Ingestion:
    """The three output files while they are written, and counts of their rows."""

    def __init__(self, data: DataConfig, folder: Path):
        self.data, self.folder = data, folder
        self.tallies = {"train": _Tally(), "golden": _Tally()}
        self.sources: dict[str, _SourceTally] = {}
        self.fingerprint = hashlib.sha256()  # of kind, id and content of every good row, in order
        share = data.holdout_fraction
        self._good = {
            "train": _Writer[Record](folder / RECORDS_FILE, RECORDS_SCHEMA, lambda rows: records_table(rows, share)),
            "golden": _Writer[Record](folder / GOLDEN_FILE, GOLDEN_SCHEMA, lambda rows: golden_table(rows, share)),
        }
        to_table = partial(pa.Table.from_pylist, schema=QUARANTINE_SCHEMA)
        self._bad = _Writer[dict[str, Any]](folder / QUARANTINE_FILE, QUARANTINE_SCHEMA, to_table)

    @property
    def rows(self) -> int:
        return sum(t.rows for t in self.tallies.values())

    def read(self, file: InputFile, rules: Rules, kind: str) -> Iterator[None]:
        """Consume a file row by row; yield after each, so that the caller can report progress."""
        tally = self.tallies[kind]
        for position, row in file.rows():
            parsed = [row] if isinstance(row, Problem) else parse_row(row, file.form, rules, tally.ids)
            tally.rows += 1
            if isinstance(parsed, Record):
                self._accept(parsed, kind)
            else:
                tally.bad += 1
                tally.reasons[parsed[0].reason.value] += 1
                for field_, reason, detail in parsed:
                    place = {"file": file.name, "row": position, "field": file.column_of(field_)}
                    self._bad.add(place | {"reason": reason.value, "detail": detail})
            yield

    def close(self) -> None:
        for writer in self._good.values():
            writer.close()
        self._bad.close()

    def _accept(self, record: Record, kind: str) -> None:
        self.tallies[kind].ids.add(record.record_id)
        self.tallies[kind].repeated += len(record.responses) - len(set(record.responses))
        self._good[kind].add(record, len(record.content))
        self.fingerprint.update(f"{kind} {record.record_id} {record.content}\n".encode())
        if kind == "train":
            for response, reward, source in zip(record.responses, record.rewards, record.sources, strict=True):
                tally = self.sources.setdefault(source or UNKNOWN, _SourceTally())
                tally.responses += 1
                tally.chars += len(response)
                tally.measured += reward is not None


def run(spec: Spec, context: StageContext) -> StageOutput:
    if changed := changed_sources(spec.data, spec.fingerprints, FingerprintMemory(Settings().fingerprints)):
        names = ", ".join(changed[:5])
        raise DataError(f"input changed between planning and reading: {names}", hint="run the same command again to plan with the new data")
    ingestion = _Ingestion(spec.data, context.path)
    try:
        inputs = inputs_of(spec.data)
        for done, item in enumerate(inputs):
            for file in open_input(item, spec.fingerprints):
                for _ in ingestion.read(file, _rules(spec.data, item.source), item.content):
                    if ingestion.rows % PROGRESS_ROWS == 0:
                        context.progress(done, len(inputs), "inputs", f"{ingestion.rows} rows")
        context.progress(len(inputs), len(inputs), "inputs", f"{ingestion.rows} rows")
    finally:  # the quarantine explains a failure, so it is kept in any case
        ingestion.close()
        context.folder.commit(QUARANTINE_FILE)
    _check_quality(ingestion)
    _check_sources(ingestion)
    splits = Counter(pq.read_table(context.path / RECORDS_FILE, columns=["split"])["split"].to_pylist())
    _check_splits(splits, spec.data)
    return _output(ingestion, splits)


def _rules(data: DataConfig, source: DataSource) -> Rules:
    return Rules(
        max_text_bytes=data.max_text_bytes,
        max_responses=data.max_responses,
        allowed_sources=None if data.sources is None else frozenset(data.sources),
        default_source=source.source,
    )


def _check_quality(ingestion: _Ingestion) -> None:
    limit, quarantine = ingestion.data.max_bad_fraction, ingestion.folder / QUARANTINE_FILE
    for kind, tally in ingestion.tallies.items():
        reasons = ", ".join(f"{reason} {n}" for reason, n in tally.reasons.most_common())
        counts = f"{tally.bad} of {tally.rows} rows in data.{kind} are bad ({reasons})"
        if tally.bad > limit * tally.rows:
            raise DataError(
                f"{counts}, more than data.max_bad_fraction = {limit}",
                hint=f"see file, row, field and reason of each in {quarantine}; repair the data or raise data.max_bad_fraction",
            )
        if getattr(ingestion.data, kind) and not tally.good:
            message = f"{counts}: no good row is left" if tally.rows else f"data.{kind} holds no rows"
            raise DataError(message, hint=f"give data.{kind} at least one good row; reasons are in {quarantine}")


def _check_sources(ingestion: _Ingestion) -> None:
    names = sorted(ingestion.sources.keys() - {UNKNOWN})
    if not names and not ingestion.tallies["golden"].good:
        hint = "set data.train[i].source: NAME, or data.train[i].columns.sources: COLUMN; or give trusted responses in data.golden"
        raise DataError("no response in data.train has a source, and calibration compares sources", hint=hint)
    patterns = ingestion.data.golden_sources
    if not ingestion.tallies["golden"].good and not any(is_golden_source(n, patterns) for n in names):
        raise DataError(
            f"no source matches data.golden_sources = {patterns} and data.golden is empty: there is nothing to align towards",
            hint=f"set data.golden_sources to the trusted ones among: {', '.join(names)}; or give trusted responses in data.golden",
        )


def _check_splits(splits: Counter[str], data: DataConfig) -> None:
    for split in ("train", "eval"):
        if not splits[split]:
            hint = f"prompts are split by hash: give more prompts, or change data.holdout_fraction = {data.holdout_fraction}"
            raise DataError(f"none of {splits.total()} records falls into the {split} split", hint=hint)


def _output(ingestion: _Ingestion, splits: Counter[str]) -> StageOutput:
    train, golden = ingestion.tallies["train"], ingestion.tallies["golden"]
    responses = sum(f.responses for f in ingestion.sources.values())
    sources = {
        name: SourceFacts(
            responses=f.responses, share=f.responses / responses, mean_chars=f.chars / f.responses, measured_rewards=f.measured
        )
        for name, f in sorted(ingestion.sources.items())
    }
    counts = {"rows_in": ingestion.rows, "rows_bad": train.bad + golden.bad, "golden_rows": golden.good}
    return StageOutput(
        rows=train.good,
        metrics=counts | {"records": train.good, "responses": responses, "sources": len(sources)},
        facts=Facts(
            **counts,
            bad_by_reason=dict(sorted((train.reasons + golden.reasons).items())),
            repeated_responses=train.repeated,
            records=Splits(train=splits["train"], eval=splits["eval"]),
            sources=sources,
            fingerprint=ingestion.fingerprint.hexdigest(),
        ),
    )


def headline(result: StageResult[Facts]) -> str:
    facts = result.facts
    reasons = ", ".join(f"{reason} {n}" for reason, n in Counter(facts.bad_by_reason).most_common(3))
    bad = f", {facts.rows_bad} bad ({reasons})" if facts.rows_bad else ""
    return f"{facts.records.train + facts.records.eval} records{bad}"


STAGE = Stage(Spec, run, Facts, headline=headline, section="stage")

"""Stage ``prompts``: a file of prompts, or of responses to be judged, as the tables that ``generate`` and ``judge`` read.

Input: one Parquet or JSON-lines file (or another format of ``ingest``) with a column ``prompt`` (strings or messages); for responses also
``response``, one row each, or lists as in preference data. The data is not split and needs no source. Output: ``records.parquet`` of
ingest's schema, one row per record, all in the split ``eval``; for responses also ``samples.parquet`` (row, record_id, prompt_hash,
sample, response), grouped by record: ``row`` is the place in the file. Rows belong to one record when they have the same id, without
ids when they have the same prompt. With ``against``, a record's own responses come from that file: an LLM judge compares the samples with
them.
Guarantee: every row of the file is in the output, or the stage fails and names the first bad ones. The digest is that of the
content, not of the path.
Cost: the file is read twice (checksum, rows) and held in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dora_core.config.data import Columns, DataSource
from dora_core.data.inputs import Input, fingerprint_inputs, open_input
from dora_core.data.problems import Problem
from dora_core.data.records import Record, Rules, parse_row, records_table
from dora_core.errors import ConfigError, DataError, did_you_mean
from infra.store.store import sha256_of
from tasks.runtime.descriptor import Stage
from tasks.runtime.facts import Facts
from tasks.runtime.spec import NotInDigest, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.tables.artifacts import RECORDS_FILE, SAMPLES_FILE, given_samples_schema

SHOWN = 5
"""Bad rows named in an error."""
RULES = Rules(max_text_bytes=50_000_000, max_responses=1_000_000)
"""No practical limits: stages that read these records truncate long texts themselves."""
SAMPLES_SCHEMA = given_samples_schema()


class Spec(StageSpec):
    """See the module docstring.

    Attributes:
        columns: of ``source``; ``against`` has its own.
        content: checksums of the files of ``source``, then of ``against``, from :func:`content_of`. Paths are not part of the digest.
    """

    stage: ClassVar[str] = "prompts"
    placement: ClassVar[Literal["job", "local"]] = "local"

    kind: Literal["prompts", "responses"]
    columns: Columns
    content: list[str]
    against_columns: Columns | None
    source: Annotated[DataSource, NotInDigest]
    against: Annotated[DataSource | None, NotInDigest]


def plan(kind: Literal["prompts", "responses"], source: DataSource, against: DataSource | None = None) -> Spec:
    """Build the spec for the current content of a file.

    Raises:
        DataError: a file that is not there or cannot be read.
    """
    return Spec(
        kind=kind,
        columns=_columns(source),
        content=content_of(kind, source, against),
        against_columns=None if against is None else _columns(against),
        source=source,
        against=against,
    )


def _columns(source: DataSource) -> Columns:
    """The mapping that a file of prompts or responses may have.

    Raises:
        ConfigError: it maps another field.
    """
    given = source.columns.model_dump(exclude_none=True)
    other = sorted(field for field, column in given.items() if field not in Columns.model_fields or column is False)
    if other:
        raise ConfigError(
            f"columns of {source.shown}: {', '.join(other)} cannot be mapped here", hint=did_you_mean(other[0], Columns.model_fields)
        )
    return Columns(**given)


def content_of(kind: Literal["prompts", "responses"], source: DataSource, against: DataSource | None) -> list[str]:
    """sha256 of every file, in order; after the files of an input with read options (a split, a query) also that of the options."""
    inputs = [Input(source, kind, kind)] + ([] if against is None else [Input(against, "responses", "responses")])
    content = list[str]()
    for item in inputs:
        content += fingerprint_inputs([item]).values()
        content += [sha256_of(item.source.choice)] if item.source.choice else []
    return content


def run(spec: Spec, context: StageContext) -> StageOutput:
    if content_of(spec.kind, spec.source, spec.against) != spec.content:
        raise DataError(f"{spec.source.shown} changed between planning and reading", hint="run the same command again")
    rows = list(_rows(spec.source, spec.kind))
    if not rows:
        raise DataError(f"{spec.source.shown} has no rows", hint="give a file with at least one prompt")
    given = None if spec.against is None else _responses_by_prompt(spec.against)
    records, samples = list[Record](), list[dict[str, Any]]()
    for members in _grouped(rows, spec.source).values():
        first = rows[members[0]]
        own = [] if spec.kind == "prompts" else [(row, response) for row in members for response in rows[row].responses]
        responses = [response for _, response in own] if given is None else given.get(first.prompt_hash, [])
        rewards: list[float | None] = [None] * len(responses)
        sources: list[str | None] = [None] * len(responses)
        records.append(replace(first, responses=responses, rewards=rewards, sources=sources, reward_kind="none"))
        for sample, (row, response) in enumerate(own):
            values = (row, first.record_id, first.prompt_hash, sample, response)
            samples.append(dict(zip(SAMPLES_SCHEMA.names, values, strict=True)))
    if given is not None and (alone := sum(not record.responses for record in records)):
        raise DataError(
            f"{alone} of {len(records)} prompts have no response in {spec.against.shown if spec.against else ''}",
            hint="compare with a file of responses to the same prompts: `dora generate` with the same prompts file writes one",
        )
    table = records_table(records, holdout_fraction=0.0)
    split = pa.array(["eval"] * len(records), pa.string())
    pq.write_table(table.set_column(table.column_names.index("split"), "split", split), context.path / RECORDS_FILE, compression="zstd")
    if spec.kind == "responses":
        pq.write_table(pa.Table.from_pylist(samples, SAMPLES_SCHEMA), context.path / SAMPLES_FILE, compression="zstd")
    prompts = len({record.prompt_hash for record in records})
    return StageOutput(rows=len(samples) or len(records), metrics={"prompts": prompts, "responses": len(samples)})


def _rows(source: DataSource, kind: Literal["prompts", "responses"]) -> Iterator[Record]:
    """All rows in order. A row without an id gets its prompt's hash as one.

    Raises:
        DataError: rows are bad; the first are named.
    """
    bad = list[str]()
    for file in open_input(Input(source, kind, kind), {}):
        for number, value in file.rows():
            parsed = [value] if isinstance(value, Problem) else parse_row(value, file.form, RULES)
            if isinstance(parsed, Record):
                yield parsed if value.get("id") not in (None, "") else replace(parsed, record_id=f"{parsed.prompt_hash:016x}")
            else:
                problems = "; ".join(f"{file.column_of(p.field) or 'row'}: {p.reason.value}, {p.detail}" for p in parsed)
                bad.append(f"{file.name}, row {number + 1}: {problems}")
    if bad:
        hint = "correct or remove them; rows count from 1"
        raise DataError(f"{len(bad)} rows are bad, the first:\n  " + "\n  ".join(bad[:SHOWN]), hint=hint)


def _grouped(rows: Sequence[Record], source: DataSource) -> dict[str, list[int]]:
    """Places of each record's rows, records in the order of their first.

    Raises:
        DataError: one id for different prompts.
    """
    groups = defaultdict[str, list[int]](list)
    for place, row in enumerate(rows):
        members = groups[row.record_id]
        members.append(place)
        if row.prompt_hash != rows[members[0]].prompt_hash:
            raise DataError(
                f"{source.shown}: rows {members[0] + 1} and {place + 1} have the id {row.record_id!r} and different prompts",
                hint="an id belongs to one prompt: correct the ids, or leave the column out",
            )
    return groups


def _responses_by_prompt(source: DataSource) -> dict[int, list[str]]:
    """Distinct responses of a file, by the hash of their prompt."""
    found = defaultdict[int, dict[str, None]](dict)
    for row in _rows(source, "responses"):
        found[row.prompt_hash] |= dict.fromkeys(row.responses)
    return {prompt: list(responses) for prompt, responses in found.items()}


STAGE = Stage(Spec, run, Facts)

"""Stage ``ingest``: read every input, validate each row, write the canonical tables. Runs in the flow's own process.

Input: the files and dataset names of ``data``, unchanged since they were fingerprinted at plan time; each is read by its adapter.
Output: ``records.parquet``, ``golden.parquet``, ``quarantine.parquet`` (schemas in ``dora_core/data/records.py``).
Guarantee: rows keep the order of the inputs, bad rows are all in quarantine with all their reasons, and the bytes depend
only on the spec. ``rows_in`` = good records + ``rows_bad`` + duplicates + records beyond ``max_rows`` + training records of held-out
prompts, where a row counts once, by its first error; a record of the shapes rows and tree counts as one. A row is kept unchanged or
dropped whole, never clipped. Control characters in a text are kept, and so is a response that a list has twice: two draws of the
mixture, which the facts count (a judge may even reward them differently).

Ids are unique per input: a record whose id an earlier input has gets one with a digest of its content. A record that equals one of an
earlier input of its kind, or an earlier row of the same input where rows have no ids, is counted and left out.

Split: the row's split column; ``eval`` for ``data.eval``; without either, ``train`` if there is ``data.eval``, else the hash of the prompt
(of its question with ``data.split_by: question``).
If split columns name no held-out record at all, the hash decides for all, with a warning. No prompt is both trained on and held out: a
split by hash cannot do that, and where the data gives the split, training records of held-out prompts are left out, trusted responses
to them held out (``data.split_overlap``).

Cost: inputs are read twice (checksum, rows), those with ``max_rows`` once more, and those with held-out rows of their own once more up to
their split; memory holds one row group, all record ids and, with several inputs, 16 bytes of every record's content.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import pyarrow as pa
import yaml

from dora_core.config.adapter import Adapter
from dora_core.config.data import DataConfig
from dora_core.data.acceptance import (
    Mapped,
    Quality,
    Refusal,
    Wanted,
    bad_rows,
    both_splits,
    refuse_first,
    trusted_sources,
    unusable,
)
from dora_core.data.adapted import AdaptedInput, AdaptedRow, MappedFiles
from dora_core.data.adapter.canonical import CanonicalRow, Refused, is_repetition
from dora_core.data.conversations import ConversationCounter
from dora_core.data.fingerprints import FingerprintMemory
from dora_core.data.goals import conditioned, states_weights, without_rewards
from dora_core.data.inputs import Input, changed_sources, rules_of, split_key, split_of
from dora_core.data.mixing import Selection, content_key, copies
from dora_core.data.opening import open_inputs
from dora_core.data.problems import Problem, Reason
from dora_core.data.record_counts import UNKNOWN, is_tie, is_unmeasured
from dora_core.data.records import (
    GOLDEN_SCHEMA,
    QUARANTINE_SCHEMA,
    RECORDS_SCHEMA,
    Record,
    Rules,
    Split,
    golden_table,
    is_golden_source,
    parse_canonical,
    records_table,
    with_goals,
    with_tools,
)
from dora_core.data.suspicion import Example, Finding, Seen, Suspicion, refuse
from dora_core.errors import DataError, did_you_mean
from infra.settings import Settings
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.spec import StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.stages._ingest_facts import (
    BadRowFacts,
    ExampleFacts,
    Facts,
    FindingFacts,
    InputFacts,
    MappingFacts,
    SourceFacts,
    Splits,
)
from tasks.stages._ingest_tables import Writer, hold_out_by_hash
from tasks.tables.artifacts import GOLDEN_FILE, QUARANTINE_FILE, RECORDS_FILE

PROGRESS_ROWS = 2000
FILES_SHOWN = 20
Kind = Literal["train", "eval", "golden"]

__all__ = ["STAGE", "Facts", "Spec", "run"]


class Spec(StageSpec):
    stage: ClassVar[str] = "ingest"
    version: ClassVar[int] = 5  # withdrawn annotations and rows; grades are no approvals
    placement: ClassVar[Literal["job", "local"]] = "local"

    data: DataConfig
    fingerprints: dict[str, str]


@dataclass
class _InputTally:
    """Counts of one input, named as in :class:`InputFacts`."""

    records: int = 0
    bad: int = 0
    duplicates: int = 0
    renamed: int = 0
    ties: int = 0
    unmeasured: int = 0
    split_given: int = 0
    overlapping: int = 0
    not_selected: int = 0
    weighted_out: int = 0
    copies: int = 0
    splits: Counter[str] = field(default_factory=Counter)


@dataclass
class _SourceTally:
    responses: int = 0
    chars: int = 0
    measured: int = 0


class _Ingestion:
    """The three output files while they are written, and counts of their rows.

    Args:
        held_out: hashes of prompts, or questions (``data.split_by``), that are not trained on.
    """

    def __init__(self, data: DataConfig, folder: Path, suspicion: Suspicion, held_out: frozenset[int]):
        self.data, self.folder, self.suspicion, self.held_out = data, folder, suspicion, held_out
        self.tallies: dict[Kind, Quality] = {"train": Quality(), "eval": Quality(), "golden": Quality()}
        self.golden_rows = self.repeated_responses = 0
        self.inputs: list[_InputTally] = []
        self.sources: dict[str, _SourceTally] = {}
        self.splits: Counter[str] = Counter()
        self.fingerprint = hashlib.sha256()
        self.copied = set[str]()
        self.conversations = ConversationCounter()
        self._ids: dict[bool, set[str]] = {False: set(), True: set()}  # of records and of golden rows, all inputs
        self._several = {kind: len(getattr(data, kind)) > 1 for kind in self.tallies}
        self._contents: dict[Kind, set[int]] = {kind: set() for kind in self.tallies}  # of earlier inputs
        share = data.holdout_fraction
        schemas = (RECORDS_SCHEMA, GOLDEN_SCHEMA)
        if any(source.messages.tools == "keep" for source in [*data.train, *data.eval, *data.golden]):
            schemas = (with_tools(RECORDS_SCHEMA), with_tools(GOLDEN_SCHEMA))
        if self.data.goal is not None or any(states_weights(source) for source in [*data.train, *data.eval]):
            schemas = (with_goals(schemas[0]), with_goals(schemas[1]))
        records, trusted = schemas
        self._good = {
            False: Writer[Record](folder / RECORDS_FILE, records, lambda rows: records_table(rows, share, records)),
            True: Writer[Record](folder / GOLDEN_FILE, trusted, lambda rows: golden_table(rows, share, trusted)),
        }
        to_table = partial(pa.Table.from_pylist, schema=QUARANTINE_SCHEMA)
        self._bad = Writer[dict[str, Any]](folder / QUARANTINE_FILE, QUARANTINE_SCHEMA, to_table)

    @property
    def rows(self) -> int:
        return sum(t.rows for t in self.tallies.values())

    def read(self, source: AdaptedInput, selection: Selection | None) -> Iterator[None]:
        """Consume an input row by row; yield after each, so that the caller can report progress."""
        kind, one = cast(Kind, source.item.content), _InputTally()
        self.inputs.append(one)
        tally, rules = self.tallies[kind], rules_of(self.data, source.item)
        taken, contents = set[str](), set[int]()
        for row in source.rows():
            parsed = _all_problems(row.value, rules) if isinstance(row.value, list) else parse_canonical(row.value, rules, taken)
            tally.rows += 1
            if isinstance(parsed, Record) and kind != "golden" and (problems := without_rewards(parsed, self.data.goal)):
                parsed = problems
            if isinstance(parsed, Record):
                tally.kept += 1
                taken.add(parsed.record_id)
                self._take(parsed, row, kind, source.item, one, selection, contents)
            elif is_repetition(row.value, parsed):
                one.duplicates += 1
            else:
                one.bad += 1
                self._quarantine(parsed, row, kind)
            yield
        self._contents[kind] |= contents

    def close(self) -> None:
        for writer in self._good.values():
            writer.close()
        self._bad.close()

    def _quarantine(self, problems: list[Problem], row: AdaptedRow, kind: Kind) -> None:
        for problem in problems:
            place = {"file": row.file, "row": row.row, "field": row.column_of(problem.field)}
            self._bad.add(place | {"reason": problem.reason.value, "detail": problem.detail})
        self.tallies[kind].see_bad(row.bad(problems[0]))

    def _take(
        self,
        record: Record,
        row: AdaptedRow,
        kind: Kind,
        item: Input,
        one: _InputTally,
        selection: Selection | None,
        contents: set[int],
    ) -> None:
        """Write a good record and its copies, unless it is a duplicate or left out by the mixing."""
        golden, expected = kind == "golden", item.source.weight * item.source.repeat
        key = content_key(record) if selection is not None or expected != 1 or self._several[kind] else 0
        if self._several[kind]:
            if key in self._contents[kind]:
                one.duplicates += 1
                return
            contents.add(key)
        if selection is not None and key not in selection:
            one.not_selected += 1
            return
        record = self._with_split(record, kind, item, one)
        split = split_of(record, item, self.data)
        renamed = record.record_id in self._ids[golden]
        if renamed:
            digest = hashlib.sha256(record.content.encode()).hexdigest()[:8]
            record = replace(record, record_id=self._free_id(f"{record.record_id}~{digest}", golden))
        self.suspicion.see(Seen(record, golden, split, Example(row.file, row.row), item.place, renamed))
        if split == "train" and self.held_out and split_key(record, self.data) in self.held_out:
            one.overlapping += 1
            if not golden:
                return
            record, split = replace(record, split="eval"), "eval"
        one.records += 1
        one.renamed += renamed
        one.unmeasured += is_unmeasured(record.rewards)
        one.ties += is_tie(record.rewards)
        number = copies(key, expected) if split == "train" and expected != 1 else 1
        if number == 0:
            one.weighted_out += 1
        else:
            self._write(record, kind, split, one)
        for copy in range(2, number + 1):
            again = replace(record, record_id=self._free_id(f"{record.record_id}#{copy}", golden))
            self._write(again, kind, split, one)
            self.copied.add(again.record_id)
            one.copies += 1

    def _with_split(self, record: Record, kind: Kind, item: Input, one: _InputTally) -> Record:
        """The record with the split that the data gives it, if any."""
        if kind == "eval":
            one.split_given += 1
            return record if record.split == "eval" else replace(record, split="eval")
        one.split_given += record.split is not None
        if record.split is None and kind == "train" and self.data.eval:
            return replace(record, split="train")
        if record.split is None and self.data.split_by == "question":  # the tables know the hash of the prompt alone
            return replace(record, split=split_of(record, item, self.data))
        return record

    def _free_id(self, wanted: str, golden: bool) -> str:
        number, name = 1, wanted
        while name in self._ids[golden]:
            number += 1
            name = f"{wanted}.{number}"
        return name

    def _write(self, record: Record, kind: Kind, split: Split, one: _InputTally) -> None:
        """Write a record, or with goals in prompts the records that it becomes."""
        golden = kind == "golden"
        for one_goal in conditioned(record, "eval" if golden else split, self.data.goal):
            fresh = one_goal.record_id == record.record_id
            self._put(one_goal if fresh else replace(one_goal, record_id=self._free_id(one_goal.record_id, golden)), kind, split, one)

    def _put(self, record: Record, kind: Kind, split: Split, one: _InputTally) -> None:
        golden = kind == "golden"
        self._ids[golden].add(record.record_id)
        self.conversations.add_record(record.prompt, record.responses, record.record_id)
        self.golden_rows += golden
        self.repeated_responses += 0 if golden else len(record.responses) - len(set(record.responses))
        self._good[golden].add(record, len(record.content))
        self.fingerprint.update(f"{kind} {record.record_id} {record.content}\n".encode())
        one.splits[split] += 1
        if not golden:
            self.splits[split] += 1
            for response, reward, source in zip(record.responses, record.rewards, record.sources, strict=True):
                name = source or UNKNOWN
                facts = self.sources.get(name)
                if facts is None:
                    facts = self.sources[name] = _SourceTally()
                facts.responses += 1
                facts.chars += len(response)
                facts.measured += reward is not None


def run(spec: Spec, context: StageContext) -> StageOutput:
    if changed := changed_sources(spec.data, spec.fingerprints, FingerprintMemory(Settings().fingerprints)):
        shown = ", ".join(changed[:5])
        raise DataError(f"input changed between planning and reading: {shown}", hint="run the same command again to plan with the new data")
    inputs, suspicion = open_inputs(spec.data, spec.fingerprints)
    selections = [_selection(source, spec) for source in inputs]
    ingestion = _Ingestion(spec.data, context.path, suspicion, _held_out_prompts(inputs, selections, spec))
    try:
        for done, (source, selection) in enumerate(zip(inputs, selections, strict=True)):
            for _ in ingestion.read(source, selection):
                if ingestion.rows % PROGRESS_ROWS == 0:
                    context.progress(done, len(inputs), "inputs", f"{ingestion.rows} rows")
        context.progress(len(inputs), len(inputs), "inputs", f"{ingestion.rows} rows")
    finally:  # the quarantine explains a failure, so it is kept in any case
        ingestion.close()
        context.folder.commit(QUARANTINE_FILE)
    quarantine = str(context.path / QUARANTINE_FILE)
    refuse_first(bad_rows(kind, tally, spec.data, quarantine=quarantine) for kind, tally in ingestion.tallies.items())
    names = sorted(ingestion.sources.keys() - {UNKNOWN})
    refuse_first([trusted_sources(names, ingestion.golden_rows, spec.data)])
    findings = suspicion.findings()
    refuse(findings)
    given = sum(one.split_given for one in ingestion.inputs)
    by_hash = given > 0 and not ingestion.splits["eval"]
    if by_hash and spec.data.goal is not None:
        raise DataError(
            "the data name a split and no record for evaluation, and with data.goal a held-out prompt must be known when it is read",
            hint="mark records as eval, give data.eval, or leave the split column out (columns.split: false)",
        )
    if by_hash:
        ingestion.splits = hold_out_by_hash(context.path / RECORDS_FILE, spec.data, ingestion.copied)
        hold_out_by_hash(context.path / GOLDEN_FILE, spec.data, frozenset())
    refuse_first([both_splits(ingestion.splits, given, spec.data, overlapping=sum(one.overlapping for one in ingestion.inputs))])
    return _output(ingestion, inputs, findings, by_hash)


def check_inputs(spec: Spec, wanted: Wanted = Wanted()) -> list[str]:  # noqa: B008  # immutable
    """Open every input and resolve its adapter, so that the plan fails on inputs that the stage would refuse at its first row, and on
    rows that the run cannot use.

    Args:
        wanted: what the run would do with the records.

    Returns:
        How each input is read, one sentence each; findings of the files' names.

    Raises:
        DataError, ConfigError: an input cannot be read as configured, needs a decision, or cannot be used as configured.
    """
    inputs, suspicion = open_inputs(spec.data, spec.fingerprints, references=False)
    findings = suspicion.findings()
    refuse(findings)
    refuse_first(unusable(wanted, spec.data, [one for source in inputs for one in source.mapped]))
    refuse_first([_trusted_there(inputs, spec)])
    return [line for source in inputs for line in _how_read(source)] + [finding.text() for finding in findings]


def _trusted_there(inputs: list[AdaptedInput], spec: Spec) -> Refusal | None:
    """Read train and eval until a trusted source appears; a refusal where none does.

    Costs the first rows of most data, and one more reading of data that is refused here.
    """
    if spec.data.golden:
        return None
    names = dict[str, None]()
    for source in inputs:
        rules = rules_of(spec.data, source.item)
        for row in source.rows():
            record = parse_canonical(row.value, rules) if isinstance(row.value, CanonicalRow) else None
            if not isinstance(record, Record):
                continue
            new = [name for name in record.sources if name is not None and name not in names]
            if any(is_golden_source(name, spec.data.golden_sources) for name in new):
                return None
            names |= dict.fromkeys(new)
    return trusted_sources(sorted(names), 0, spec.data) if inputs and names else None


def check_read(spec: Spec, facts: Facts, wanted: Wanted) -> None:
    """The same of inputs that were read before: refuse rows that the run cannot use.

    Raises:
        DataError, ConfigError: rows cannot be used as configured.
    """
    refuse_first(unusable(wanted, spec.data, [one for given in facts.inputs for one in _mapped_before(given)]))


def _mapped_before(given: InputFacts) -> Iterator[Mapped]:
    for mapping in given.mappings:
        adapter = Adapter.model_validate(yaml.safe_load(mapping.adapter) or {})
        yield Mapped(given.place, mapping.shape, tuple(adapter.carry), given.split_given > 0)


def _selection(source: AdaptedInput, spec: Spec) -> Selection | None:
    """The records of an input with ``max_rows``, found by reading it once before."""
    size = source.item.source.max_rows
    if size is None:
        return None
    rules = rules_of(spec.data, source.item)
    first = AdaptedInput(source.item, spec.fingerprints)
    parsed = (parse_canonical(row.value, rules) for row in first.rows() if isinstance(row.value, CanonicalRow))
    return Selection((content_key(record) for record in parsed if isinstance(record, Record)), size)


def _held_out_prompts(inputs: list[AdaptedInput], selections: list[Selection | None], spec: Spec) -> frozenset[int]:
    """Prompts of evaluation records that training must not see, found by reading their inputs once before; none where the hash alone
    splits, as it never splits a prompt."""
    giving = {id(source) for source in inputs if source.item.content == "eval" or (source.item.content == "train" and source.gives_split)}
    if not giving or spec.data.split_overlap != "drop_from_train":
        return frozenset()
    found = set[int]()
    for source, selection in zip(inputs, selections, strict=True):
        if id(source) not in giving and (spec.data.eval or source.item.content == "golden"):
            continue
        rules = rules_of(spec.data, source.item)
        for row in AdaptedInput(source.item, spec.fingerprints).rows(but_train=True):
            record = parse_canonical(row.value, rules) if isinstance(row.value, CanonicalRow) else None
            if (
                isinstance(record, Record)
                and split_of(record, source.item, spec.data) == "eval"
                and (selection is None or content_key(record) in selection)
            ):
                found.add(split_key(record, spec.data))
    return frozenset(found)


_LEAVES_NO_PROMPT = frozenset({Reason.PROMPT_MISMATCH, Reason.CONTEXT_CONFLICT, Reason.NO_PROMPT_BOUNDARY, Reason.EMPTY_PROMPT})


def _all_problems(problems: list[Problem], rules: Rules) -> list[Problem]:
    """Return the adapter's problems of a row, and further problems of the record in other fields."""
    if not isinstance(problems, Refused):
        return problems
    found = {_root(problem) for problem in problems}
    if any(problem.reason in _LEAVES_NO_PROMPT for problem in problems):
        found.add("prompt")
    more = parse_canonical(problems.row, rules)
    return [*problems, *(problem for problem in more if _root(problem) not in found)] if isinstance(more, list) else problems


def _root(problem: Problem) -> str:
    return re.split(r"[\[.]", problem.field, maxsplit=1)[0]


# ------------------------------------------------------------------------------------------------------- facts


def _output(ingestion: _Ingestion, inputs: list[AdaptedInput], findings: list[Finding], by_hash: bool) -> StageOutput:
    tallies = ingestion.tallies.values()
    responses = sum(f.responses for f in ingestion.sources.values())
    sources = {
        name: SourceFacts(
            responses=f.responses, share=f.responses / responses, mean_chars=f.chars / f.responses, measured_rewards=f.measured
        )
        for name, f in sorted(ingestion.sources.items())
    }
    counts = {
        "rows_in": ingestion.rows,
        "rows_bad": sum(tally.bad for tally in tallies),
        "golden_rows": ingestion.golden_rows,
    }
    records = ingestion.splits.total()
    facts = Facts(
        **counts,
        bad_by_reason=dict(sorted(sum((tally.reasons for tally in tallies), Counter[str]()).items())),
        repeated_responses=ingestion.repeated_responses,
        records=Splits(train=ingestion.splits["train"], eval=ingestion.splits["eval"]),
        sources=sources,
        fingerprint=ingestion.fingerprint.hexdigest(),
        inputs=[_input_facts(source, one) for source, one in zip(inputs, ingestion.inputs, strict=True)],
        conversations=ingestion.conversations.shapes(),
        findings=[_finding_facts(finding) for finding in findings],
        first_bad=[BadRowFacts(kind=kind, **bad.model_dump()) for kind, tally in ingestion.tallies.items() for bad in tally.first.values()],
        warnings=list(_warnings(ingestion, inputs, findings, by_hash)),
    )
    return StageOutput(rows=records, metrics=counts | {"records": records, "responses": responses, "sources": len(sources)}, facts=facts)


def _input_facts(source: AdaptedInput, one: _InputTally) -> InputFacts:
    counts = {name: value for name, value in asdict(one).items() if name != "splits"}
    return InputFacts(
        place=source.item.place,
        path=source.item.source.shown,
        mappings=[_mapping_facts(mapping) for mapping in source.mappings],
        rows=source.rows_read,
        splits=Splits(train=one.splits["train"], eval=one.splits["eval"]),
        notes=dict(sorted(source.notes.items())),
        file_notes=source.file_notes,
        **counts,
    )


def _mapping_facts(mapping: MappedFiles) -> MappingFacts:
    resolved = mapping.resolved
    return MappingFacts(
        files=mapping.files[:FILES_SHOWN],
        file_count=len(mapping.files),
        preset=resolved.preset,
        recognised=resolved.recognised,
        shape=resolved.shape,
        adapter=resolved.text,
        used=list(resolved.left.used),
        carried=list(dict.fromkeys([*resolved.left.carried, *resolved.left.unnamed])),
        ignored=list(resolved.left.ignored),
        unread=list(resolved.left.unread),
    )


def _finding_facts(finding: Finding) -> FindingFacts:
    examples = [ExampleFacts(file=at.file, row=at.row) for at in finding.examples]
    return FindingFacts(
        rule=finding.rule, level=finding.level, count=finding.count, message=finding.message, hint=finding.hint, examples=examples
    )


def _warnings(ingestion: _Ingestion, inputs: list[AdaptedInput], findings: list[Finding], by_hash: bool) -> Iterator[str]:
    for source, one in zip(inputs, ingestion.inputs, strict=True):
        place = source.item.place
        if any(mapping.resolved.preset or mapping.resolved.left.unnamed for mapping in source.mappings):
            yield from _how_read(source)
        if one.duplicates:
            yield f"{place}: {one.duplicates} records equal earlier ones and were left out"
        yield from (f"{place}: {note}" for note in source.file_notes)
        if source.notes:
            yield f"{place}: " + ", ".join(f"{name}: {count}" for name, count in sorted(source.notes.items()))
        if one.not_selected or one.weighted_out or one.copies:
            yield f"{place}: mixing left out {one.not_selected + one.weighted_out} records and added {one.copies} copies"
    trusted = [pattern for pattern in ingestion.data.golden_sources if not any(is_golden_source(n, [pattern]) for n in ingestion.sources)]
    if trusted and len(trusted) < len(ingestion.data.golden_sources):
        yield f"data.golden_sources: no source is named {', '.join(trusted)}; {did_you_mean(trusted[0], sorted(ingestion.sources))}"
    if by_hash:
        yield "the split column names no evaluation records: records are held out by the hash of their prompt"
    for kind, tally in ingestion.tallies.items():
        if tally.bad:
            reasons = ", ".join(f"{reason} {n}" for reason, n in tally.reasons.most_common())
            yield f"{tally.bad} of {tally.rows} rows in data.{kind} are bad ({reasons}){tally.in_words()}".replace("\n  ", "; ")
    yield from (f"{finding.text()}; {finding.hint}" for finding in findings)


def _how_read(source: AdaptedInput) -> Iterator[str]:
    """Preset, shape and carried columns of an input's files."""
    for mapping in source.mappings:
        more = f" and {len(mapping.files) - 1} more files" if len(mapping.files) > 1 else ""
        unread = f"; not read: {', '.join(mapping.resolved.left.unread)}" if mapping.resolved.left.unread else ""
        yield f"{source.item.place}: {mapping.files[0]}{more}: {mapping.resolved.in_words()}{unread}"


def headline(result: StageResult[Facts]) -> str:
    facts = result.facts
    reasons = ", ".join(f"{reason} {n}" for reason, n in Counter(facts.bad_by_reason).most_common(3))
    bad = f", {facts.rows_bad} bad ({reasons})" if facts.rows_bad else ""
    return f"{facts.records.train + facts.records.eval} records{bad}"


STAGE = Stage(Spec, run, Facts, headline=headline, section="stage")

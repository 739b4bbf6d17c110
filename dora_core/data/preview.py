"""Preview of inputs: how each is read and what becomes of its rows, before anything is trained.

The same code as the stage ``ingest`` reads the rows, so that the preview shows what a run would read. Small inputs are read whole; of a
large one the first rows are, and every number then carries the size of that sample.

Left out: texts in anything but ``shown`` and ``table``, which callers ask for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
from pydantic import Field

from dora_core.config.data import DataConfig
from dora_core.data.adapter.base import CanonicalRow
from dora_core.data.adapter.driver import RowAdapter
from dora_core.data.adapter.resolve import Resolved, resolve
from dora_core.data.columns_left import ColumnsLeft
from dora_core.data.encoding import plain_prompt, render_prompt
from dora_core.data.formats import Reader
from dora_core.data.inputs import BATCH_ROWS, Input, inputs_of
from dora_core.data.locations import locate, readable
from dora_core.data.problems import Problem, Reason
from dora_core.data.record_counts import UNKNOWN, Lengths, RecordCounter, RecordCounts, SourceCounts
from dora_core.data.records import Form, Message, Record, Rules, is_golden_source, parse_row, split_of
from dora_core.errors import DataError, DoraError
from dora_core.strict_model import StrictModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = 20_000
"""Rows read of an input unless the caller says otherwise."""
PROBE_ROWS = 64
SHOWN = 3
FILES_NAMED = 5

Progress = Callable[[str, int, int | None], None]


class ResponseShown(StrictModel):
    """One response of a record, with its texts."""

    text: str
    reward: float | None
    source: str | None


class RecordShown(StrictModel):
    """A record as it was understood, and the row that it is from."""

    file: str
    row: int
    record_id: str
    split: str
    kind: str
    prompt: list[Message]
    responses: list[ResponseShown]
    extra: str | None = Field(None, description="Carried columns, as JSON.")


class BadRow(StrictModel):
    """The first problem of a row that cannot be a record."""

    file: str
    row: int
    field: str
    reason: str
    detail: str
    remedy: str = Field("", description="The line to write, or what to change.")

    def in_words(self) -> str:
        """One sentence."""
        what = f"`{self.field}` {self.detail}" if self.field else self.detail
        return f"row {self.row} of {self.file}: {what}" + (f". {self.remedy}" if self.remedy else "")


class ColumnUse(StrictModel):
    """What becomes of a column, or of a part of one."""

    column: str
    use: Literal["used", "carried", "ignored", "unread"]
    why: str


class InputPreview(StrictModel):
    """One input: its reader, its mapping, and counts of the rows that were read."""

    place: str = Field(description="Key in the configuration.")
    path: str
    content: str = Field(description="train, eval or golden.")
    files: int = 0
    names: list[str] = Field(default_factory=list, description="The first files.")
    reader: str = Field("", description="Name of the format.")
    preset: str | None = None
    recognised: bool = Field(False, description="The preset was found by the schema (`preset: auto`).")
    shape: str = ""
    mapping: str = Field("", description="The mapping in YAML that the preset and the written keys expand to.")
    columns: list[ColumnUse] = Field(default_factory=list)
    rows: int = Field(0, description="Rows that were read.")
    complete: bool = Field(True, description="Whether that is all of them.")
    bad: int = 0
    bad_by_reason: dict[str, int] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list, description="What was left out or decided, with counts.")
    counts: RecordCounts = RecordCounts()
    golden: list[str] = Field(default_factory=list, description="Sources of this input that are trusted.")
    shown: list[RecordShown] = Field(default_factory=list)
    first_bad: BadRow | None = None
    refused: str = Field("", description="Why the input cannot be read at all.")
    hint: str = ""


class Estimate(StrictModel):
    """Whether the calibration factors h can be estimated from this data for the objective."""

    needed: bool
    possible: bool
    why: str


class Preview(StrictModel):
    """All inputs of a configuration."""

    inputs: list[InputPreview]
    total: RecordCounts = Field(description="Of train and eval.")
    factors: Estimate
    refusals: list[str] = Field(description="Reasons for which a run would refuse the data.")
    warnings: list[str]

    @property
    def accepted(self) -> bool:
        """Whether a run would accept the data."""
        return not self.refusals


class Wanted(NamedTuple):
    """What a run would do with the data.

    Attributes:
        objective: its name.
        uses_factors: whether it reads h.
        trusted_start: whether a supervised start learns trusted responses.
    """

    objective: str = "dora"
    uses_factors: bool = True


def preview_data(
    data: DataConfig,
    wanted: Wanted = Wanted(),  # noqa: B008  # immutable
    *,
    rows: int | None = ROWS,
    shown: int = SHOWN,
    keep: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> tuple[Preview, list[RecordShown], list[BadRow]]:
    """Preview all inputs of a configuration.

    Args:
        rows: most rows of an input that are read; None: all.
        shown: records of each input that the preview shows whole.
        keep: most records, and most bad rows, that are returned beside it, shared evenly by the inputs.
        progress: called with (input, rows read, None).

    Returns:
        The preview, records and bad rows. An input that cannot be read has ``refused``; others are previewed all the same.
    """
    items, total = inputs_of(data), RecordCounter()
    share = -(-keep // max(1, len(items)))
    read = [_InputReading(item, data, rows, shown, share, total, progress) for item in items]
    inputs = [reading.result() for reading in read]
    table = [record for reading in read for record in reading.table]
    bad = [row for reading in read for row in reading.bad_rows]
    counts = total.counts()
    factors = _estimate(inputs, counts, data, wanted)
    refusals = [*_refusals(inputs, counts, data, wanted)]
    return (
        Preview(inputs=inputs, total=counts, factors=factors, refusals=refusals, warnings=list(_warnings(inputs, counts, factors))),
        table,
        bad,
    )


class _Opened(NamedTuple):
    """One file with all of its columns."""

    name: str
    format: str
    columns: list[str]
    ragged: bool
    reader: Reader

    def rows(self) -> Iterator[tuple[int, Any]]:
        with readable(self.name):
            yield from self.reader.rows({column: column for column in self.columns}, BATCH_ROWS)


def open_raw(item: Input) -> Iterator[_Opened]:
    """The files of an input with their rows as they are in the file."""
    for at in locate(item.source, item.place):
        with readable(at.name):
            reader = at.format.reader(at)
        if reader.columns:
            yield _Opened(at.name, at.format.name, list(reader.columns), reader.ragged, reader)


class _InputReading:
    """Reading of one input; ``total`` counts over all of them."""

    def __init__(self, item: Input, data: DataConfig, rows: int | None, shown: int, keep: int, total: RecordCounter, progress: Progress):
        self.item, self.data, self.limit, self.keep = item, data, rows, keep
        self.most_shown, self.progress = shown, progress
        self.counter, self.total = RecordCounter(), total
        self.table: list[RecordShown] = []
        self.bad_rows: list[BadRow] = []
        self.shown: list[RecordShown] = []
        self.reasons: Counter[str] = Counter()
        self.notes: list[str] = []
        self.read, self.bad, self.complete = 0, 0, True
        self.first_bad: BadRow | None = None
        self.files: list[str] = []
        self.format = ""
        self.resolved: Resolved | None = None

    def result(self) -> InputPreview:
        refused, hint = "", ""
        try:
            for file in open_raw(self.item):
                self.files.append(file.name)
                self.format = self.format or file.format
                if self.limit is None or self.read < self.limit:
                    self._read_file(file)
                else:
                    self.complete = False
        except DoraError as error:
            refused, hint = error.message, error.hint
        left, counts, source = self.resolved.left if self.resolved else None, self.counter.counts(), self.item.source
        trusted = self.data.golden_sources
        return InputPreview(
            place=self.item.place,
            path=source.path if isinstance(source.path, str) else ", ".join(source.path),
            content=self.item.content,
            files=len(self.files),
            names=self.files[:FILES_NAMED],
            reader=self.format,
            preset=self.resolved.preset if self.resolved else None,
            recognised=bool(self.resolved and self.resolved.recognised),
            shape=self.resolved.shape if self.resolved else "",
            mapping=self.resolved.text if self.resolved else "",
            columns=[] if left is None else column_uses(left),
            rows=self.read,
            complete=self.complete,
            bad=self.bad,
            bad_by_reason=dict(self.reasons.most_common()),
            notes=self.notes,
            counts=counts,
            golden=[name for name in counts.sources if is_golden_source(name, trusted)],
            shown=self.shown,
            first_bad=self.first_bad,
            refused=refused,
            hint=hint,
        )

    def _read_file(self, file: _Opened) -> None:
        item = self.item
        sample = [row for _, row in islice(file.rows(), PROBE_ROWS) if isinstance(row, dict)]
        resolved = resolve(
            item.source.adapter,
            file.columns,
            sample,
            place=item.place,
            name=file.name,
            golden=item.content == "golden",
            ragged=file.ragged,
        )
        if item.content != "golden" and not resolved.names_sources and item.source.source is None:
            raise DataError(
                f"{item.place}: {file.name} does not name the sources of its responses, and calibration compares sources",
                hint=f"set {item.place}.source: NAME for all rows, or map a column in {item.place}.columns "
                f"(source, sources, chosen_source and rejected_source); columns there: {', '.join(sorted(file.columns))}",
            )
        if self.resolved is None:
            self.resolved = resolved
        elif resolved.text != self.resolved.text:
            self.notes.append(f"{file.name} is read otherwise: {resolved.in_words()}")
        adapter, rules = RowAdapter(resolved.adapter, file.columns), _rules(self.data, item)
        for position, adapted in adapter.rows(self._limited(file.rows())):
            if isinstance(adapted, CanonicalRow):
                parsed = parse_row(adapted.fields, cast(Form, adapted.form), rules)
                if isinstance(parsed, Record):
                    self._good(parsed, file.name, position, adapted.fields)
                    continue
                adapted = parsed
            self._refuse(adapted, file.name, position, adapter)
        self.notes += [f"{count:,} {what}" for what, count in sorted(adapter.notes.items())]

    def _limited(self, rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        for row in rows:
            if self.limit is not None and self.read >= self.limit:
                self.complete = False
                return
            self.read += 1
            if self.read % BATCH_ROWS == 0:
                self.progress(self.item.place, self.read, None)
            yield row

    def _good(self, record: Record, file: str, position: int, fields: dict[str, Any]) -> None:
        split = fields.get("split") or self._split(record)
        self.counter.add(record, split)
        if self.item.content != "golden":
            self.total.add(record, split)
        if len(self.shown) < self.most_shown or len(self.table) < self.keep:
            shown = RecordShown(
                file=file,
                row=position,
                record_id=record.record_id,
                split=split,
                kind=record.reward_kind,
                prompt=record.prompt,
                responses=[
                    ResponseShown(text=text, reward=reward, source=source)
                    for text, reward, source in zip(record.responses, record.rewards, record.sources, strict=True)
                ],
                extra=fields.get("extra"),
            )
            if len(self.shown) < self.most_shown:
                self.shown.append(shown)
            if len(self.table) < self.keep:
                self.table.append(shown)

    def _split(self, record: Record) -> str:
        if self.item.content == "eval":
            return "eval"
        if self.data.eval:
            return "train"
        return str(split_of(np.array([record.prompt_hash], dtype=np.uint64), self.data.holdout_fraction)[0])

    def _refuse(self, problems: Sequence[Problem], file: str, position: int, adapter: RowAdapter) -> None:
        self.bad += 1
        first = problems[0]
        self.reasons[str(first.reason)] += 1
        if self.first_bad is not None and len(self.bad_rows) >= self.keep:
            return
        bad = BadRow(
            file=file,
            row=position,
            field=adapter.place_of(first.field),
            reason=str(first.reason),
            detail=first.detail,
            remedy=remedy(first, self.item.place),
        )
        self.first_bad = self.first_bad or bad
        if len(self.bad_rows) < self.keep:
            self.bad_rows.append(bad)


def _rules(data: DataConfig, item: Input) -> Rules:
    return Rules(
        max_text_bytes=data.max_text_bytes,
        max_responses=data.max_responses,
        allowed_sources=None if data.sources is None else frozenset(data.sources),
        default_source=item.source.source,
    )


# ------------------------------------------------------------------------------------------------------------- in words

_REMEDIES: dict[Reason, str] = {
    Reason.UNPARSABLE: "Repair the row, or let `data.max_bad_fraction` tolerate its share",
    Reason.MISSING_RESPONSE: "Map another column in `{0}.columns`, or let `data.max_bad_fraction` tolerate the share of such rows",
    Reason.EMPTY_RESPONSE: "Let `data.max_bad_fraction` tolerate the share of such rows, or leave them out of the file",
    Reason.IDENTICAL_PAIR: "Let `data.max_bad_fraction` tolerate the share of such rows: an identical pair is not a preference",
    Reason.EMPTY_PROMPT: "Map the prompt: `{0}.columns.prompt: COLUMN`",
    Reason.TEXT_TOO_LONG: "Raise `data.max_text_bytes`",
    Reason.TOO_MANY_RESPONSES: "Raise `data.max_responses`",
    Reason.UNKNOWN_SOURCE: "Add it to `data.sources`, or map another column as the source",
    Reason.WRONG_TYPE: "Map another column in `{0}.columns`",
}


def remedy(problem: Problem, place: str) -> str:
    """The line to write for a bad row; empty where the problem's detail has it."""
    if "`" in problem.detail:
        return ""
    return _REMEDIES.get(problem.reason, "").format(place)


def column_uses(left: ColumnsLeft) -> list[ColumnUse]:
    """Every column with what becomes of it and why."""
    why = (
        ("used", left.used, "read into the record"),
        ("carried", left.carried, "kept beside the record, for groups in evaluation (`carry`)"),
        ("carried", left.unnamed, "nothing reads it, and it looks like nothing that must be decided: kept beside the record"),
        ("ignored", left.ignored, "left out by decision (`ignore`)"),
        ("unread", left.unread, "part of a column that is read, and nothing reads this part"),
    )
    seen: dict[str, ColumnUse] = {}
    for use, names, reason in why:
        for name in names:
            seen.setdefault(name, ColumnUse(column=name, use=cast(Any, use), why=reason))
    return list(seen.values())


def rendered(prompt: Sequence[Message], tokenizer: PreTrainedTokenizerBase | None, template: str) -> str:
    """The prompt as the policy reads it; without a tokenizer as plain text, which is what a tiny policy reads."""
    if tokenizer is None:
        return plain_prompt(prompt) + "\n"
    return render_prompt(prompt, tokenizer, template)


# --------------------------------------------------------------------------------------------------------------- verdict


def _sources(counts: RecordCounts) -> list[str]:
    return [name for name in counts.sources if name != UNKNOWN]


def _golden_rows(inputs: Sequence[InputPreview]) -> int:
    return sum(item.counts.records for item in inputs if item.content == "golden")


def _estimate(inputs: Sequence[InputPreview], counts: RecordCounts, data: DataConfig, wanted: Wanted) -> Estimate:
    names, rows = _sources(counts), _golden_rows(inputs)
    trusted = [name for name in names if is_golden_source(name, data.golden_sources)]
    others = [name for name in counts.sources if name not in trusted]
    reference = [f"source {', '.join(trusted)}"] if trusted else []
    reference += [f"{rows:,} rows of data.golden"] if rows else []
    if not reference:
        why = f"no source is among data.golden_sources = {data.golden_sources}, and data.golden has no rows; sources: "
        why += ", ".join(names[:12]) or "none"
    elif not others:
        why = f"every response is of a trusted source ({', '.join(trusted)}): calibration compares them with others"
    else:
        why = f"trusted: {' and '.join(reference)}; compared with: {', '.join(others[:12])}"
    if not wanted.uses_factors:
        why = f"objective {wanted.objective} does not read h; " + why
    return Estimate(needed=wanted.uses_factors, possible=bool(reference) and bool(others), why=why)


def _refusals(inputs: Sequence[InputPreview], counts: RecordCounts, data: DataConfig, wanted: Wanted) -> Iterator[str]:
    """Reasons in the words of ``ingest``, which checks the same after reading all rows."""
    for item in inputs:
        if item.refused:
            yield item.refused + (f" → {item.hint}" if item.hint else "")
    if any(item.refused for item in inputs):
        return
    for content in ("train", "eval", "golden"):
        of_kind = [item for item in inputs if item.content == content]
        if not of_kind:
            continue
        bad, good = sum(item.bad for item in of_kind), sum(item.counts.records for item in of_kind)
        reasons: Counter[str] = Counter()
        for item in of_kind:
            reasons.update(item.bad_by_reason)
        listed = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
        rows = bad + good
        first = next((item.first_bad for item in of_kind if item.first_bad is not None), None)
        example = f"; first: {first.in_words()}" if first else ""
        if bad > data.max_bad_fraction * rows:
            yield f"{bad} of {rows} rows in data.{content} are bad ({listed}), more than data.max_bad_fraction = {data.max_bad_fraction}{example}"
        elif not good:
            yield f"data.{content}: no good row is left" if rows else f"data.{content} holds no rows"
    names = _sources(counts)
    if not _golden_rows(inputs) and not any(is_golden_source(name, data.golden_sources) for name in names):
        yield (
            f"no source matches data.golden_sources = {data.golden_sources} and data.golden is empty: there is nothing to align towards "
            f"→ set data.golden_sources to the trusted ones among: {', '.join(names) or 'none'}; or give trusted responses in data.golden"
        )
    if all(item.complete for item in inputs):
        for split in ("train", "eval"):
            if counts.records and not counts.splits.get(split):
                yield (
                    f"none of {counts.records} records falls into the {split} split "
                    f"→ prompts are split by hash: give more prompts, or change data.holdout_fraction = {data.holdout_fraction}"
                )


def _warnings(inputs: Sequence[InputPreview], counts: RecordCounts, factors: Estimate) -> Iterator[str]:
    for item in inputs:
        if item.bad:
            assert item.first_bad is not None
            yield f"{item.place}: {item.bad:,} of {item.rows:,} rows are bad; first: {item.first_bad.in_words()}"
        if not item.complete:
            yield f"{item.place}: only its first {item.rows:,} rows were read"
    if counts.records and not any(counts.preferences.values()) and not (counts.approved or counts.disapproved):
        yield "no record holds a preference: no two responses of one prompt have different rewards"
    if factors.needed and not factors.possible:
        yield f"h cannot be estimated: {factors.why}"


__all__ = ["BadRow", "InputPreview", "Lengths", "Preview", "RecordShown", "SourceCounts", "Wanted", "preview_data"]

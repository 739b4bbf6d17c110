"""Preview of inputs: how each is read and what becomes of its rows, before anything is trained.

The same code as the stage ``ingest`` reads the rows, so that the preview shows what a run would read. Small inputs are read whole; of a
large one the first rows are, and every number then carries the size of that sample.

Left out: texts in anything but ``shown`` and ``table``, which callers ask for.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from dora_core.config.data import DataConfig
from dora_core.data.acceptance import BadRow, Quality, Refusal, Wanted, bad_rows, both_splits, trusted_sources, unusable
from dora_core.data.adapted import AdaptedInput, AdaptedRow
from dora_core.data.adapter.canonical import CanonicalRow, is_repetition
from dora_core.data.columns_left import ColumnsLeft
from dora_core.data.goals import conditioned, without_rewards
from dora_core.data.inputs import BATCH_ROWS, Input, inputs_of, rules_of, split_of
from dora_core.data.locations import locate
from dora_core.data.previewed import ColumnUse, Estimate, FindingShown, InputPreview, Preview, RecordShown, ResponseShown
from dora_core.data.problems import Problem
from dora_core.data.record_counts import UNKNOWN, RecordCounter, RecordCounts
from dora_core.data.records import Record, Split, is_golden_source, is_held_out, parse_canonical
from dora_core.data.reference_texts import reference_texts
from dora_core.data.response_turns import TURN, readable, split_turns
from dora_core.data.suspicion import Example, Finding, Seen, Suspicion
from dora_core.errors import DoraError

if TYPE_CHECKING:
    pass

ROWS = 20_000
"""Rows read of an input unless the caller says otherwise."""
SHOWN = 3
FILES_NAMED = 5

Progress = Callable[[str, int, int | None], None]


def preview_data(
    data: DataConfig,
    wanted: Wanted = Wanted(),  # noqa: B008  # immutable
    *,
    rows: int | None = ROWS,
    shown: int = SHOWN,
    keep: int = 0,
    suspect: bool = True,
    progress: Progress = lambda what, done, total: None,
) -> tuple[Preview, list[RecordShown], list[BadRow]]:
    """Preview all inputs of a configuration.

    Args:
        rows: most rows of an input that are read; None: all.
        shown: records of each input that the preview shows whole.
        suspect: apply the suspicion rules too.
        keep: most records, and most bad rows, that are returned beside it, shared evenly by the inputs.
        progress: called with (input, rows read, None).

    Returns:
        The preview, records and bad rows. An input that cannot be read has ``refused``; others are previewed all the same.
    """
    items, total, taken = inputs_of(data), RecordCounter(), set[str]()
    share = -(-keep // max(1, len(items)))
    readings = [_InputReading(item, data, rows, shown, share) for item in items]
    suspicion = Suspicion(data) if suspect else None
    if suspicion is not None:
        for reading in readings:
            for mapping in reading.input.mappings if reading.input else ():
                suspicion.opened(reading.item.place, mapping.files, mapping.gives_split)
        for text in reference_texts(data, {}):
            suspicion.reference(text)
    for reading in readings:
        reading.read(total, suspicion, taken, progress)
    inputs, counts = [reading.result() for reading in readings], total.counts()
    findings = suspicion.findings() if suspicion is not None else []
    factors = _estimate(inputs, counts, data, wanted)
    preview = Preview(
        inputs=inputs,
        total=counts,
        factors=factors,
        findings=[FindingShown.of(finding) for finding in findings],
        refusals=list(_refusals(readings, inputs, counts, data, wanted, findings)),
        warnings=list(_warnings(inputs, counts, factors, findings)),
    )
    return preview, [record for reading in readings for record in reading.table], [row for reading in readings for row in reading.bad_rows]


class _InputReading:
    """Reading of one input; ``total`` counts over all of them."""

    def __init__(self, item: Input, data: DataConfig, rows: int | None, shown: int, keep: int):
        self.item, self.data, self.keep, self.most_shown = item, data, keep, shown
        self.counter = RecordCounter()
        self.table: list[RecordShown] = []
        self.bad_rows: list[BadRow] = []
        self.shown: list[RecordShown] = []
        self.quality = Quality()
        self.by_hash: Counter[str] = Counter()
        self.prompts: dict[Split, array[int]] = {"train": array("Q"), "eval": array("Q")}
        self.duplicates, self.split_given = 0, 0
        self.first_bad: BadRow | None = None
        self.format, self.refused, self.hint = "", "", ""
        self.input: AdaptedInput | None = None
        with self._explained():
            self.format = next((at.format.name for at in locate(item.source, item.place)), "")
            self.input = AdaptedInput(item, {}, most_rows=rows)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Keep the error of this input; others are read all the same."""
        try:
            yield
        except DoraError as error:
            self.refused, self.hint = error.message, error.hint

    def read(self, total: RecordCounter, suspicion: Suspicion | None, taken: set[str], progress: Progress) -> None:
        """Read the rows; ``taken``: ids of earlier inputs, to which those of this one are added."""
        if self.input is None:
            return
        rules, own = rules_of(self.data, self.item), set[str]()
        with self._explained():
            for row in self.input.rows():
                if self.input.rows_read % BATCH_ROWS == 0:
                    progress(self.item.place, self.input.rows_read, None)
                if not isinstance(row.value, CanonicalRow):
                    self._refuse(row.value, row)
                    continue
                parsed = parse_canonical(row.value, rules, own)
                if not isinstance(parsed, Record):
                    if is_repetition(row.value, parsed):
                        self.duplicates += 1
                    else:
                        self._refuse(parsed, row)
                    continue
                if self.item.content != "golden" and (problems := without_rewards(parsed, self.data.goal)):
                    self._refuse(problems, row)
                    continue
                self.quality.kept += 1
                split = split_of(parsed, self.item, self.data)
                self.by_hash["eval" if is_held_out(parsed.prompt_hash, self.data.holdout_fraction) else "train"] += 1
                self.prompts[split].append(parsed.prompt_hash)
                self.split_given += parsed.split is not None or self.item.content == "eval"
                for one in conditioned(parsed, "eval" if self.item.content == "golden" else split, self.data.goal):
                    self.counter.add(one, split)
                    self._show(one, split, row)
                    if self.item.content != "golden":
                        total.add(one, split)
                if suspicion is not None:
                    golden, at = self.item.content == "golden", Example(row.file, row.row)
                    suspicion.see(Seen(parsed, golden, split, at, self.item.place, parsed.record_id in taken))
                own.add(parsed.record_id)
        taken |= own

    def result(self) -> InputPreview:
        mappings = self.input.mappings if self.input else []
        first, counts, source = mappings[0].resolved if mappings else None, self.counter.counts(), self.item.source
        notes = [f"{mapping.files[0]} is read otherwise: {mapping.resolved.in_words()}" for mapping in mappings[1:]]
        notes += self.input.file_notes if self.input else []
        notes += [f"{count:,} {what}" for what, count in sorted(self.input.notes.items())] if self.input else []
        mixing = [f"{name} {value}" for name in ("weight", "repeat", "max_rows") if (value := getattr(source, name)) not in (None, 1)]
        notes += [f"sampled by {', '.join(mixing)}, which these counts do not show"] if mixing else []
        files = self.input.files if self.input else []
        return InputPreview(
            place=self.item.place,
            path=source.path if isinstance(source.path, str) else ", ".join(source.path),
            content=self.item.content,
            files=len(files),
            names=files[:FILES_NAMED],
            reader=self.format,
            preset=first.preset if first else None,
            recognised=bool(first and first.recognised),
            shape=first.shape if first else "",
            mapping=first.text if first else "",
            columns=column_uses(first.left) if first else [],
            rows=self.input.rows_read if self.input else 0,
            complete=not (self.input and self.input.is_cut),
            bad=self.quality.bad,
            bad_by_reason=dict(self.quality.reasons.most_common()),
            duplicates=self.duplicates,
            split_given=self.split_given,
            notes=notes,
            counts=counts,
            golden=[name for name in counts.sources if is_golden_source(name, self.data.golden_sources)],
            shown=self.shown,
            first_bad=self.first_bad,
            refused=self.refused,
            hint=self.hint,
        )

    def _show(self, record: Record, split: str, row: AdaptedRow) -> None:
        if len(self.shown) >= self.most_shown and len(self.table) >= self.keep:
            return
        shown = RecordShown(
            file=row.file,
            row=row.row,
            record_id=record.record_id,
            split=split,
            kind=record.reward_kind,
            prompt=record.prompt,
            responses=[
                ResponseShown(text=readable(text), reward=reward, source=source, turns=split_turns(text) if TURN in text else [])
                for text, reward, source in zip(record.responses, record.rewards, record.sources, strict=True)
            ],
            extra=record.extra,
            label_probability=record.label_probability,
        )
        if len(self.shown) < self.most_shown:
            self.shown.append(shown)
        if len(self.table) < self.keep:
            self.table.append(shown)

    def _refuse(self, problems: Sequence[Problem], row: AdaptedRow) -> None:
        bad = row.bad(problems[0])
        self.quality.see_bad(bad)
        self.first_bad = self.first_bad or bad
        if len(self.bad_rows) < self.keep:
            self.bad_rows.append(bad)


# ------------------------------------------------------------------------------------------------------------- in words


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


def _refusals(
    readings: Sequence[_InputReading],
    inputs: Sequence[InputPreview],
    counts: RecordCounts,
    data: DataConfig,
    wanted: Wanted,
    findings: Sequence[Finding],
) -> Iterator[str]:
    """Reasons for which a run would refuse the data."""
    for item in inputs:
        if item.refused:
            yield item.refused + (f" → {item.hint}" if item.hint else "")
    if any(item.refused for item in inputs):
        return
    found: list[Refusal | None] = [*unusable(wanted, data, [one for reading in readings if reading.input for one in reading.input.mapped])]
    for kind in ("train", "eval", "golden"):
        of_kind = [reading for reading in readings if reading.item.content == kind]
        seen = _seen([item for item in inputs if item.content == kind])
        found.append(bad_rows(kind, _together(of_kind), data, seen=seen))
    yield from (refusal.text() for refusal in found if refusal is not None)
    for finding in findings:
        if finding.level == "refuse":
            yield f"suspicious data: {finding.text()} → {finding.hint}; or accept it: data.accept: [{finding.rule}]"
    untrusted = trusted_sources(_sources(counts), _golden_rows(inputs), data, seen=_seen(inputs))
    if untrusted is not None:
        yield untrusted.text()
    if counts.records and all(item.complete for item in inputs):
        given, splits, overlapping = sum(item.split_given for item in inputs), counts.splits, 0
        if given and not splits.get("eval"):
            splits = sum((reading.by_hash for reading in readings if reading.item.content != "golden"), Counter[str]())
        elif given and data.split_overlap == "drop_from_train":
            overlapping = _overlapping([reading for reading in readings if reading.item.content != "golden"])
            splits = splits | {"train": splits.get("train", 0) - overlapping}
        unsplit = both_splits(splits, given, data, overlapping=overlapping)
        if unsplit is not None:
            yield unsplit.text()


def _overlapping(readings: Sequence[_InputReading]) -> int:
    """Training records of held-out prompts."""
    held_out = {prompt for reading in readings for prompt in reading.prompts["eval"]}
    return sum(prompt in held_out for reading in readings for prompt in reading.prompts["train"])


def _together(readings: Sequence[_InputReading]) -> Quality:
    """Quality of all inputs of one kind."""
    whole = Quality()
    for reading in readings:
        one = reading.quality
        whole.rows += one.bad + one.kept + reading.duplicates
        whole.bad += one.bad
        whole.kept += one.kept
        whole.reasons.update(one.reasons)
        whole.first = one.first | whole.first
    return whole


def _seen(inputs: Sequence[InputPreview]) -> str:
    """``"in the first 2,000 rows: "`` where an input was not read whole."""
    rows = max((item.rows for item in inputs if not item.complete), default=0)
    return f"in the first {rows:,} rows: " if rows else ""


def _warnings(inputs: Sequence[InputPreview], counts: RecordCounts, factors: Estimate, findings: Sequence[Finding]) -> Iterator[str]:
    for item in inputs:
        if item.split_given and not counts.splits.get("eval") and item.content != "golden":
            yield f"{item.place}: the split column names no evaluation records: records are held out by the hash of their prompt"
        if item.duplicates:
            yield f"{item.place}: {item.duplicates:,} rows equal earlier ones and are left out"
        if item.bad:
            assert item.first_bad is not None
            yield f"{item.place}: {item.bad:,} of {item.rows:,} rows are bad; first: {item.first_bad.in_words()}"
        if not item.complete:
            yield f"{item.place}: only its first {item.rows:,} rows were read"
    if counts.records and not any(counts.preferences.values()) and not (counts.approved or counts.disapproved):
        yield "no record holds a preference: no two responses of one prompt have different rewards"
    for finding in findings:
        if finding.level == "note":
            yield f"{finding.text()} → {finding.hint}"
    if factors.needed and not factors.possible:
        yield f"h cannot be estimated: {factors.why}"

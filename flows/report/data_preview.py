"""Preview of the inputs and their mappings: as lines, as a Markdown table, and as a page that can be searched.

The page holds texts of the data: it is written only on request. It is one self-contained file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dora_core.data.acceptance import BadRow
from dora_core.data.previewed import InputPreview, Preview, RecordShown
from dora_core.data.record_counts import RecordCounts
from flows.report.html import HERE, render_template

if TYPE_CHECKING:
    from markupsafe import Markup

    from tasks.stages._ingest_facts import Facts as IngestFacts

MAX_TEXT = 4_000
"""Characters of a text on the page; a longer one is cut, with the number of characters left out."""
SOURCES_SHOWN = 8


def input_line(item: InputPreview) -> str:
    """``data.train[0] prefs.jsonl: jsonl, preset hh (recognised), shape pair, 30 rows, trusted: human``."""
    if item.refused:
        return f"{item.place} {item.path}: REFUSED: {item.refused}"
    parts = [item.reader, preset_text(item), f"shape {item.shape}", rows_text(item)]
    if item.content == "golden":
        parts.append("trusted data")
    elif item.golden:
        parts.append(f"trusted: {', '.join(item.golden[:SOURCES_SHOWN])}")
    if item.bad:
        parts.append(f"{item.bad:,} bad")
    if item.duplicates:
        parts.append(f"{item.duplicates:,} repeated")
    return f"{item.place} {item.path}: {', '.join(parts)}"


def preset_text(item: InputPreview) -> str:
    """``preset hh (recognised)``, or ``no preset``."""
    if item.preset is None:
        return "no preset"
    return f"preset {item.preset}" + (" (recognised)" if item.recognised else "")


def rows_text(item: InputPreview) -> str:
    """``30 rows``, or the size of the sample."""
    return f"{item.rows:,} rows" if item.complete else f"first {item.rows:,} rows read"


def count_lines(counts: RecordCounts) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every count that applies to the data."""
    yield "records", f"{counts.records:,} with {counts.responses:,} responses"
    yield "splits", ", ".join(f"{name} {n:,}" for name, n in counts.splits.items()) or "none"
    preferences = ", ".join(f"{name} {n:,}" for name, n in counts.preferences.items()) or "none"
    yield "preferences", preferences
    if counts.approved or counts.disapproved:
        yield "approvals", f"{counts.approved:,} approved, {counts.disapproved:,} not"
    yield "ties", f"{counts.ties:,} records without a preference, {counts.tied_pairs:,} pairs of responses in all"
    yield (
        "not measured",
        f"{counts.unmeasured:,} records with fewer than two rewards, {counts.unmeasured_responses:,} responses with none",
    )
    for name, lengths in (("prompt", counts.prompt_chars), ("response", counts.response_chars)):
        yield (
            f"{name} length",
            f"5 % {lengths.p05:,}, median {lengths.median:,}, 95 % {lengths.p95:,}, longest {lengths.longest:,} characters",
        )


def source_rows(counts: RecordCounts) -> list[list[str]]:
    """Rows of the table of sources: name, responses, with a reward, preferences won and lost."""
    return [[name, f"{s.responses:,}", f"{s.measured:,}", f"{s.preferred:,}", f"{s.beaten:,}"] for name, s in counts.sources.items()]


SOURCE_COLUMNS = ("source", "responses", "with a reward", "preferences won", "lost")


def facts_markdown(facts: IngestFacts) -> str:
    """Inputs, mappings and findings of a run's records as Markdown, without a text of the data; empty for results of earlier releases."""
    if not facts.inputs:
        return ""
    rows = [
        f"| {_cell(item.path)} | {_cell(mapping.preset or '–')}{' (recognised)' if mapping.recognised else ''} | {mapping.shape} "
        f"| {item.rows:,} | {item.records:,} | {item.bad:,} | {item.duplicates:,} | {item.ties:,} | {item.unmeasured:,} "
        f"| {item.splits.train:,} / {item.splits.eval:,} |"
        for item in facts.inputs
        for mapping in item.mappings[:1]
    ]
    head = "| input | preset | shape | rows | records | bad | repeated | ties | not measured | train / eval |\n" + "|---" * 10 + "|\n"
    sources = "| source | responses | with a reward |\n|---|---|---|\n" + "\n".join(
        f"| {_cell(name)} | {one.responses:,} | {one.measured_rewards:,} |" for name, one in facts.sources.items()
    )
    noted = [f"- {item.place}: {note}" for item in facts.inputs for note in item.file_notes]
    noted += [f"- {item.place}: {count:,} {what}" for item in facts.inputs for what, count in item.notes.items()]
    noted += [f"- {bad.reason}, e.g. row {bad.row} of {bad.file}: {bad.text}" for bad in facts.first_bad]
    noted += [f"- {finding.message} ({finding.hint})" for finding in facts.findings]
    mappings = [
        f"`{item.place}` is read as\n\n```yaml\n{mapping.adapter.rstrip()}\n```" for item in facts.inputs for mapping in item.mappings
    ]
    return "\n\n".join(part for part in (head + "\n".join(rows), sources, "\n".join(noted), *mappings) if part)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# ------------------------------------------------------------------------------------------------------------------ page


def render_page(
    preview: Preview,
    records: Sequence[RecordShown],
    bad: Sequence[BadRow],
    *,
    title: str,
    factors: Mapping[tuple[str, int], float] | None = None,
    run: str | None = None,
    examples: Sequence[tuple[str, Sequence[tuple[str, str]]]] = (),
    template_note: str = "",
) -> str:
    """Render the page: counts, three records as the policy reads them, and one searchable table of records and bad rows.

    Args:
        factors: h by (record id, place of the response).
        run: the run that computed h.
        examples: (heading, [(kind, text)]) where kind is prompt, response, end or tokens (their number).
        template_note: the template that rendered the examples.
    """
    return render_template(
        "data_preview.html",
        title=title,
        preview=preview,
        lines=[(item, input_line(item), list(count_lines(item.counts)), source_rows(item.counts)) for item in preview.inputs],
        source_columns=SOURCE_COLUMNS,
        examples=examples,
        template_note=template_note,
        run=run,
        has_factors=bool(factors),
        shown=len(records),
        of=sum(item.counts.records for item in preview.inputs),
        shown_bad=len(bad),
        of_bad=sum(item.bad for item in preview.inputs),
        complete=all(item.complete for item in preview.inputs),
        payload=_script_json([*_record_rows(records, factors or {}), *_bad_rows(bad)]),
        script=_markup((HERE / "data_preview.js").read_text(encoding="utf-8")),
    )


def _record_rows(records: Sequence[RecordShown], factors: Mapping[tuple[str, int], float]) -> Iterator[dict[str, Any]]:
    for record in records:
        yield {
            "kind": "record",
            "at": f"{record.file.rsplit('/', 1)[-1]}:{record.row}",
            "id": record.record_id,
            "split": record.split,
            "prompt": [[message["role"], _cut(message["content"])] for message in record.prompt],
            "responses": [
                [one.source, one.reward, factors.get((record.record_id, i)), _cut(one.text)] for i, one in enumerate(record.responses)
            ],
        }


def _bad_rows(bad: Sequence[BadRow]) -> Iterator[dict[str, Any]]:
    for row in bad:
        yield {
            "kind": "quarantine",
            "at": f"{row.file.rsplit('/', 1)[-1]}:{row.row}",
            "reason": row.reason,
            "text": row.text,
        }


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"


def _script_json(value: Any) -> Markup:
    """JSON inside a script element: ``<`` is escaped, so that no text can end the element."""
    return _markup(json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c"))


def _markup(text: str) -> Markup:
    from markupsafe import Markup

    return Markup(text)

"""Inputs as streams of canonical rows: located, fingerprinted at plan time, opened with their columns resolved.

An input is *located* (``locations.py``: its files), *fingerprinted* (sha256 of their bytes, or a commit) and *opened* (columns resolved
once per file, rows in batches). The formats are those of ``formats/``.

A row that cannot be read is a :class:`Problem` at its position; the rows before and after it stay. A *file* that cannot be read to its
end (truncated, damaged, another format) refuses the input: the number of good rows it would have had is unknown.

A slice of a split (`train[:10%]`) counts over all files of the split, which are read once more to count their rows.

Left out: encodings other than UTF-8, and repairing anything.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from dora_core.config.data import DataConfig, DataSource
from dora_core.data.fingerprints import FingerprintMemory
from dora_core.data.formats import FORMATS, File, Location, Reader, look_at
from dora_core.data.locations import locate, readable
from dora_core.data.questions import question_hash
from dora_core.data.records import Form, Record, Rules, Split, canonical_json, is_held_out
from dora_core.data.row_views import PartitionedReader, SlicedReader, count_rows
from dora_core.errors import DataError, did_you_mean

BATCH_ROWS = 1024

Content = Literal["train", "eval", "golden", "reference", "prompts", "responses"]
"""Content of an input: preference data, held-out preference data, trusted responses, texts of evaluations (``data.decontaminate``), prompts
alone, or the responses of a policy."""

_FIELDS: dict[Form, tuple[str, ...]] = {
    "pairwise": ("id", "prompt", "chosen", "rejected", "chosen_source", "rejected_source", "task"),
    "listwise": ("id", "prompt", "responses", "rewards", "ranks", "sources", "task"),
    "prompt": ("id", "prompt", "task"),
    "sample": ("id", "prompt", "response", "task"),
}
_SINGLE: dict[Content, tuple[str, Form]] = {"prompts": ("prompt", "prompt"), "responses": ("response", "sample")}
"""The column that shows that rows of the contents prompts and responses are not preference data, and the form they then have."""


class Input(NamedTuple):
    """One input.

    Attributes:
        content: decides in which forms its rows may be.
        place: key of the configuration, such as ``data.train[0]``; for messages only.
    """

    source: DataSource
    content: Content
    place: str


class OpenFile(NamedTuple):
    """One file, or one split of a dataset, with its columns as they are.

    Attributes:
        notes: choices for the user to see: the split that is read and those left out, the field that holds the rows.
    """

    name: str
    reader: Reader
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Names of the columns; a name may occur twice."""
        return self.reader.columns

    @property
    def types(self) -> Mapping[str, pa.DataType]:
        """Arrow type of each column; empty for formats that know none before all rows are read."""
        return self.reader.types

    def rows(self, columns: Mapping[str, str] | None = None, batch_rows: int = BATCH_ROWS) -> Iterator[tuple[int, Any]]:
        """(position, row): a dict keyed by the fields of ``columns`` (None: every column), another value, or a :class:`Problem`.

        Positions count from 0: lines for JSON lines and CSV, blank ones and the header included; rows for other formats.
        """
        with readable(self.name):
            yield from self.reader.rows(columns, batch_rows)


class InputFile(NamedTuple):
    """One file, its resolved form and columns (canonical field → the file's column), and its rows."""

    name: str
    form: Form
    columns: dict[str, str]
    reader: Reader
    notes: tuple[str, ...] = ()

    def rows(self, batch_rows: int = BATCH_ROWS) -> Iterator[tuple[int, Any]]:
        """(position, row) as in :meth:`OpenFile.rows`; a dict is keyed by canonical fields."""
        yield from OpenFile(self.name, self.reader).rows(self.columns, batch_rows)

    def column_of(self, field: str) -> str:
        """The user's name for a field such as ``responses[2]``, for messages about their file."""
        root = re.split(r"[\[.]", field, maxsplit=1)[0]
        return self.columns.get(root, root) + field[len(root) :]


def inputs_of(data: DataConfig) -> list[Input]:
    """All inputs whose rows become records: train, eval, golden."""
    contents: tuple[Content, ...] = ("train", "eval", "golden")
    return [Input(source, name, f"data.{name}[{i}]") for name in contents for i, source in enumerate(getattr(data, name))]


def references_of(data: DataConfig) -> list[Input]:
    """The evaluation files of ``data.decontaminate``."""
    return [Input(DataSource(path=path), "reference", f"data.decontaminate[{i}]") for i, path in enumerate(data.decontaminate)]


def rules_of(data: DataConfig, item: Input) -> Rules:
    """Limits of the rows of one input."""
    return Rules(
        max_text_bytes=data.max_text_bytes,
        max_responses=data.max_responses,
        allowed_sources=None if data.sources is None else frozenset(data.sources),
        default_source=item.source.source,
    )


def split_of(record: Record, item: Input, data: DataConfig) -> Split:
    """Split of a record: ``data.eval``, the row's own, train beside ``data.eval``, else by the hash of its prompt or question."""
    if item.content == "eval":
        return "eval"
    if record.split is not None:
        return record.split
    if data.eval and item.content == "train":
        return "train"
    return "eval" if is_held_out(split_key(record, data), data.holdout_fraction) else "train"


def split_key(record: Record, data: DataConfig) -> int:
    """Hash of what stays in one split: the prompt, or its question (``data.split_by``)."""
    return question_hash(record.prompt) if data.split_by == "question" else record.prompt_hash


def fingerprint_sources(data: DataConfig, memory: FingerprintMemory | None = None) -> dict[str, str]:
    """:func:`fingerprint_inputs` of all files of a configuration."""
    return fingerprint_inputs([*inputs_of(data), *references_of(data)], memory)


def fingerprint_inputs(inputs: Iterable[Input], memory: FingerprintMemory | None = None) -> dict[str, str]:
    """The content of the inputs now: ``{uri: sha256 of the file's bytes}``, or the commit a dataset name resolves to.

    Where folders of the path are partitions, ``source=human/…``, they are columns, and the checksum covers them too.

    Args:
        memory: checksums of earlier calls; files that have not changed since are not read.

    Raises:
        DataError: an input does not exist, holds no readable file, or a dataset name cannot be resolved.
    """
    memory, found = memory or FingerprintMemory(), dict[str, str]()
    for item in inputs:
        for at in locate(item.source, item.place):
            if not at.files and at.name not in found:
                found[at.name] = _commit(at)
            for file in at.files:
                if file.uri not in found:
                    found[file.uri] = _content(file, at, memory)
    memory.save()
    return found


def changed_sources(data: DataConfig, fingerprints: Mapping[str, str], memory: FingerprintMemory | None = None) -> list[str]:
    """URIs whose content differs from ``fingerprints``. Dataset names are pinned to a commit and cannot change."""
    memory, now = memory or FingerprintMemory(), dict[str, str | None]()
    for at in (at for item in [*inputs_of(data), *references_of(data)] for at in locate(item.source, item.place)):
        if not at.files:
            now[at.name] = fingerprints.get(at.name)
        now |= {file.uri: _content(file, at, memory) for file in at.files if file.uri not in now}
    memory.save()
    return sorted(uri for uri in now.keys() | fingerprints.keys() if now.get(uri) != fingerprints.get(uri))


def open_files(item: Input, fingerprints: Mapping[str, str]) -> Iterator[OpenFile]:
    """The files of one input, in the order of :func:`locate`; opened one after the other, empty ones left out.

    Args:
        fingerprints: of :func:`fingerprint_sources`; a dataset name is read at the commit found there.

    Raises:
        DataError: a file that cannot be read or is of another format, or a split, slice, subset or table that is not there.
    """
    for _, group in groupby(locate(item.source, item.place), key=lambda at: at.part):
        locations = list(group)
        window, before = _window(locations, fingerprints), 0
        for at in locations:
            reader = _opened(at, fingerprints)
            if not reader.columns:
                continue  # an empty shard among others; an input without any rows is refused by the stage
            if window is not None:
                start, stop, rows = window[0] - before, window[1] - before, _count(at, reader)
                before += rows
                if start >= rows or stop <= max(start, 0):
                    continue
                reader = SlicedReader(reader, max(start, 0), stop)
            yield OpenFile(at.name, reader, (*at.notes, *reader.notes))


def open_input(item: Input, fingerprints: Mapping[str, str]) -> Iterator[InputFile]:
    """:func:`open_files` of prompts or responses, with their columns resolved. Preference data is read by ``adapted.py``.

    Raises:
        DataError: as there; a mapped column that is not there, or no form recognised.
    """
    for file in open_files(item, fingerprints):
        form, columns = _resolve_columns(file.reader, item, file.name)
        yield InputFile(file.name, form, columns, file.reader, file.notes)


def _opened(at: Location, fingerprints: Mapping[str, str]) -> Reader:
    if not at.files:
        at = replace(at, revision=fingerprints.get(at.name) or _commit(at))
    try:
        with readable(at.name):
            reader = at.format.reader(at)
    except DataError as error:
        raise _another_format(at) or error from error.__cause__
    return PartitionedReader(reader, dict(at.partitions)) if at.partitions else reader


def _another_format(at: Location) -> DataError | None:
    """The error for a file whose bytes show another format than the one it was opened in."""
    if len(at.files) != 1 or not at.format.suffixes:
        return None
    look = None
    with suppress(OSError):
        look = look_at(at.files[0])
    if look is None or (look.format is not None and FORMATS[look.format].kin == at.format.kin):
        return None
    hint = f"set {at.place}.format: {look.format}" if look.format else look.hint
    return DataError(f"{at.name} is not a {at.format.noun}: it looks like {look.text}", hint=hint)


def _window(locations: list[Location], fingerprints: Mapping[str, str]) -> tuple[int, int] | None:
    """First row and end of the slice of a split, counted over its locations; None for the whole split."""
    rows = locations[0].rows
    if rows is None:
        return None
    if not rows.is_relative and rows.stop is not None:
        return int(rows.start or 0), int(rows.stop)
    return rows.window(sum(_count(at, _opened(at, fingerprints)) for at in locations))


def _count(at: Location, reader: Reader) -> int:
    with readable(at.name):
        return count_rows(reader)


def _commit(at: Location) -> str:
    """The commit of a dataset name."""
    assert at.format.remote is not None, "a location without files is a dataset name"
    return at.revision or at.format.remote.commit(at)


def _content(file: File, at: Location, memory: FingerprintMemory) -> str:
    """The checksum of what a file gives: its bytes, and the partitions of its path where there are some."""
    digest = _sha256(file, memory)
    if not at.partitions:
        return digest
    return hashlib.sha256(f"{digest} {canonical_json(dict(at.partitions))}".encode()).hexdigest()


def _sha256(file: File, memory: FingerprintMemory) -> str:
    def compute() -> str:
        digest = hashlib.sha256()
        with file.filesystem.open_input_stream(file.path, compression=None) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()

    with readable(file.uri):
        return memory.sha256(file.path, compute) if isinstance(file.filesystem, pafs.LocalFileSystem) else compute()


# ------------------------------------------------------------------------------------------------------- columns


def _resolve_columns(reader: Reader, item: Input, name: str) -> tuple[Form, dict[str, str]]:
    there, place = reader.columns, item.place
    explicit = {field: column for field, column in item.source.columns if isinstance(column, str)}
    absent = {field: column for field, column in explicit.items() if column not in there}
    if absent and reader.ragged:
        there = [*there, *_further_columns(reader, set(absent.values()), name)]
        absent = {field: column for field, column in absent.items() if column not in there}
    if absent:
        lines = "; ".join(f"{place}.columns.{field}: no column {column!r}" for field, column in absent.items())
        raise DataError(f"{name}: {lines}", hint=did_you_mean(next(iter(absent.values())), there))

    form = _form_of(there, explicit, item, name)
    twice = sorted({column for column in there if there.count(column) > 1} & {explicit.get(f, f) for f in _FIELDS[form]})
    if twice:
        raise DataError(f"{name}: column {', '.join(twice)} is there twice", hint="keep one of them, or rename the other")
    unused = explicit.keys() - set(_FIELDS[form])
    if unused:
        hint = f"{name} is read in the {form} form, which has {', '.join(_FIELDS[form])}"
        raise DataError(f"{place}.columns: {', '.join(sorted(unused))} would be ignored", hint=hint)
    columns = {field: explicit.get(field, field) for field in _FIELDS[form]}
    if columns["id"] not in there and "record_id" in there:
        columns["id"] = "record_id"  # our own tables
    present = {field: column for field, column in columns.items() if column in there}
    return form, columns if reader.ragged else present


def _further_columns(reader: Reader, wanted: set[str], name: str) -> list[str]:
    """Those of the ``wanted`` columns that later rows of a file have, beyond the ones by which its columns are known."""
    found = set[str]()
    with readable(name):
        for _, row in reader.rows(None, BATCH_ROWS):
            found |= wanted & row.keys() if isinstance(row, dict) else set()
            if found == wanted:
                break
    return sorted(found)


def _form_of(there: list[str], explicit: Mapping[str, str], item: Input, name: str) -> Form:
    def has(field: str) -> bool:
        return explicit.get(field, field) in there

    place = item.place
    column, form = _SINGLE[item.content]
    if has(column):
        return form
    if has("responses") and not {"chosen", "rejected"} & explicit.keys():
        return "listwise"
    if has("chosen") and has("rejected"):
        return "pairwise"
    missing = next((f for f in ("chosen", "rejected") if not has(f) and (has("chosen") or has("rejected"))), column)
    raise DataError(
        f"{place}: {name} has neither a column {column!r} nor both 'chosen' and 'rejected'",
        hint=f"map yours in {place}.columns, e.g. {missing}: NAME; {did_you_mean(missing, there)}",
    )

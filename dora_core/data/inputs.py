"""Inputs as streams of canonical rows: located, fingerprinted at plan time, opened with their columns resolved.

An input is *located* (``locations.py``: its files), *fingerprinted* (sha256 of their bytes, or a commit) and *opened* (columns resolved
once per file, rows in batches). The formats are those of ``formats/``.

A row that cannot be read is a :class:`Problem` at its position; the rows before and after it stay. A *file* that cannot be read to its
end (truncated, damaged, another format) refuses the input: the number of good rows it would have had is unknown.

Left out: JSON arrays, CSV, encodings other than UTF-8, and repairing anything.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import pyarrow.fs as pafs

from dora_core.config.data import DataConfig, DataSource
from dora_core.data.fingerprints import FingerprintMemory
from dora_core.data.formats import File, Location, Reader
from dora_core.data.locations import locate, readable
from dora_core.data.records import Form
from dora_core.errors import DataError, did_you_mean

BATCH_ROWS = 1024

Content = Literal["train", "eval", "golden", "reference", "prompts", "responses"]
"""Content of an input: preference data, held-out preference data, trusted responses, texts of evaluations (``data.decontaminate``), prompts
alone, or the responses of a policy."""

_FIELDS: dict[Form, tuple[str, ...]] = {
    "pairwise": ("id", "prompt", "chosen", "rejected", "chosen_source", "rejected_source", "task"),
    "listwise": ("id", "prompt", "responses", "rewards", "ranks", "sources", "task"),
    "golden": ("id", "prompt", "response"),
    "prompt": ("id", "prompt", "task"),
    "sample": ("id", "prompt", "response", "task"),
}
_SINGLE: dict[Content, tuple[str, Form]] = {"prompts": ("prompt", "prompt"), "responses": ("response", "sample")}
"""The column that shows that rows are not preference data, and the form they then have."""


class Input(NamedTuple):
    """One input.

    Attributes:
        content: decides in which forms its rows may be.
        place: key of the configuration, such as ``data.train[0]``; for messages only.
    """

    source: DataSource
    content: Content
    place: str


class InputFile(NamedTuple):
    """One file, its resolved form and columns (canonical field → the file's column), and its rows."""

    name: str
    form: Form
    columns: dict[str, str]
    reader: Reader

    def rows(self, batch_rows: int = BATCH_ROWS) -> Iterator[tuple[int, Any]]:
        """(position, row): a dict keyed by canonical fields, another JSON value, or a :class:`Problem`.

        Positions count from 0; for JSON lines they count lines, blank ones included.
        """
        with readable(self.name):
            yield from self.reader.rows(self.columns, batch_rows)

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


def fingerprint_sources(data: DataConfig, memory: FingerprintMemory | None = None) -> dict[str, str]:
    """:func:`fingerprint_inputs` of all files of a configuration."""
    return fingerprint_inputs([*inputs_of(data), *references_of(data)], memory)


def fingerprint_inputs(inputs: Iterable[Input], memory: FingerprintMemory | None = None) -> dict[str, str]:
    """The content of the inputs now: ``{uri: sha256 of the file's bytes}``, or the commit a dataset name resolves to.

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
                    found[file.uri] = _sha256(file, memory)
    memory.save()
    return found


def changed_sources(data: DataConfig, fingerprints: Mapping[str, str], memory: FingerprintMemory | None = None) -> list[str]:
    """URIs whose content differs from ``fingerprints``. Dataset names are pinned to a commit and cannot change."""
    memory, now = memory or FingerprintMemory(), dict[str, str | None]()
    for at in (at for item in [*inputs_of(data), *references_of(data)] for at in locate(item.source, item.place)):
        if not at.files:
            now[at.name] = fingerprints.get(at.name)
        now |= {file.uri: _sha256(file, memory) for file in at.files if file.uri not in now}
    memory.save()
    return sorted(uri for uri in now.keys() | fingerprints.keys() if now.get(uri) != fingerprints.get(uri))


def open_input(item: Input, fingerprints: Mapping[str, str]) -> Iterator[InputFile]:
    """The files of one input, in the order of their names; opened one after the other.

    Args:
        fingerprints: of :func:`fingerprint_sources`; a dataset name is read at the commit found there.

    Raises:
        DataError: unreadable file, a mapped column that is not there, neither form recognised, or no source given.
    """
    for name, reader in open_readers(item, fingerprints):
        form, columns = _resolve_columns(reader, item, name)
        yield InputFile(name, form, columns, reader)


def open_readers(item: Input, fingerprints: Mapping[str, str]) -> Iterator[tuple[str, Reader]]:
    """(name, reader) of the files of one input that hold columns, in the order of their names; opened one after the other.

    Raises:
        DataError: a file cannot be read.
    """
    for at in locate(item.source, item.place):
        if not at.files:
            at = replace(at, revision=fingerprints.get(at.name) or _commit(at))
        with readable(at.name):
            reader = at.format.reader(at)
        if reader.columns:  # else an empty shard among others; an input without any rows is refused by the stage
            yield at.name, reader


def _commit(at: Location) -> str:
    """The commit of a dataset name."""
    assert at.format.remote is not None, "a location without files is a dataset name"
    return at.revision or at.format.remote.commit(at)


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
    if item.content in _SINGLE and columns["id"] not in there and "record_id" in there:
        columns["id"] = "record_id"  # our own tables
    present = {field: column for field, column in columns.items() if column in there}
    names_sources = item.source.source is not None or present.keys() & {"sources", "chosen_source", "rejected_source"}
    if item.content == "train" and not names_sources:
        needed = "sources" if form == "listwise" else "chosen_source and rejected_source"
        raise DataError(
            f"{place}: {name} does not name the sources of its responses, and calibration compares sources",
            hint=f"set {place}.source: NAME for all rows, or {place}.columns.{needed}; columns there: {', '.join(sorted(there))}",
        )
    return form, columns if reader.ragged else present


def _form_of(there: list[str], explicit: Mapping[str, str], item: Input, name: str) -> Form:
    def has(field: str) -> bool:
        return explicit.get(field, field) in there

    place = item.place
    if item.content == "golden":
        if has("response"):
            return "golden"
        raise DataError(
            f"{place}: {name} has no column 'response'", hint=f"set {place}.columns.response; {did_you_mean('response', there)}"
        )
    single = _SINGLE.get(item.content)
    if single is not None and has(single[0]):
        return single[1]
    if has("responses") and not {"chosen", "rejected"} & explicit.keys():
        return "listwise"
    if has("chosen") and has("rejected"):
        return "pairwise"
    expected = "responses" if single is None else single[0]
    missing = next((f for f in ("chosen", "rejected") if not has(f) and (has("chosen") or has("rejected"))), expected)
    raise DataError(
        f"{place}: {name} has neither a column {expected!r} nor both 'chosen' and 'rejected'",
        hint=f"map yours in {place}.columns, e.g. {missing}: NAME; {did_you_mean(missing, there)}",
    )

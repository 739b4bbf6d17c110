"""Reading inputs: Parquet, JSON lines, saved ``datasets`` directories and dataset names, as streams of canonical rows.

An input is *located* (what files are there), *fingerprinted* (sha256 of their bytes, at plan time) and *opened* (columns
resolved once per file, rows in batches). Paths are local, relative to the working directory, or URIs of ``pyarrow.fs``
(``s3://…``); JSON lines may be compressed (.gz, .bz2, .zst).

A row that cannot be read is a :class:`Problem` like any other, with its place; what was read before and after it stays. A *file* that
cannot be read to its end (truncated, damaged, another format) refuses the input: how many good rows it would have had, nobody knows.

Left out: JSON arrays, CSV, encodings other than UTF-8, and repairing anything.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from dora_core.config.method import DataConfig, DataSource
from dora_core.data.formats import DatasetReader, Format, JsonLinesReader, Location, ParquetReader, Reader, headline
from dora_core.data.records import Form
from dora_core.errors import DataError, did_you_mean

BATCH_ROWS = 1024

_SUFFIXES: dict[str, Literal["parquet", "jsonl"]] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_COMPRESSIONS = {".gz", ".bz2", ".zst"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

_FIELDS: dict[Form, tuple[str, ...]] = {
    "pairwise": ("id", "prompt", "chosen", "rejected", "chosen_source", "rejected_source", "task"),
    "listwise": ("id", "prompt", "responses", "rewards", "ranks", "sources", "task"),
    "golden": ("id", "prompt", "response"),
    "prompt": ("id", "prompt", "task"),
    "sample": ("id", "prompt", "response", "task"),
}
PROMPTS, RESPONSES = "prompts", "responses"
"""Places of inputs that are no training data: of which only prompts are wanted, or the responses of a policy."""
_WANTED: dict[str, tuple[str, Form]] = {PROMPTS: ("prompt", "prompt"), RESPONSES: ("response", "sample")}


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
        with _readable(self.name):
            yield from self.reader.rows(self.columns, batch_rows)

    def column_of(self, field: str) -> str:
        """The user's name for a field such as ``responses[2]``, for messages about their file."""
        root = re.split(r"[\[.]", field, maxsplit=1)[0]
        return self.columns.get(root, root) + field[len(root) :]


def inputs_of(data: DataConfig) -> list[tuple[str, DataSource]]:
    """All inputs with their place in the configuration, train before golden."""
    return [(f"data.train[{i}]", s) for i, s in enumerate(data.train)] + [(f"data.golden[{i}]", s) for i, s in enumerate(data.golden)]


def fingerprint_sources(data: DataConfig) -> dict[str, str]:
    """:func:`fingerprint_inputs` of all inputs."""
    return fingerprint_inputs(inputs_of(data))


def fingerprint_inputs(inputs: Iterable[tuple[str, DataSource]]) -> dict[str, str]:
    """What the inputs are right now: ``{uri: sha256 of the file's bytes}``, or the commit a dataset name resolves to.

    Args:
        inputs: with their places, see :func:`open_input`.

    Raises:
        DataError: an input does not exist, holds no readable file, or a dataset name cannot be resolved.
    """
    found = {}
    for place, source in inputs:
        for at in _locate(source, place):
            if at.uri not in found:
                found[at.uri] = source.revision or _resolve_revision(source, place) if at.format == "hub" else _sha256(at)
    return found


def changed_sources(data: DataConfig, fingerprints: Mapping[str, str]) -> list[str]:
    """URIs whose content differs from ``fingerprints``. Dataset names are pinned to a commit and cannot change."""
    now = {at.uri: fingerprints.get(at.uri) if at.format == "hub" else _sha256(at) for p, s in inputs_of(data) for at in _locate(s, p)}
    return sorted(uri for uri in now.keys() | fingerprints.keys() if now.get(uri) != fingerprints.get(uri))


def open_input(source: DataSource, place: str, fingerprints: Mapping[str, str]) -> Iterator[InputFile]:
    """The files of one input, in order of their names; opened one after the other.

    Args:
        place: as :func:`inputs_of` gives it; inputs under ``data.golden`` are read in the golden form. :data:`PROMPTS` and
            :data:`RESPONSES` read prompts alone and samples, where the file has a column for them.
        fingerprints: of :func:`fingerprint_sources`; a dataset name is read at the commit found there.

    Raises:
        DataError: unreadable file, a mapped column that is not there, neither form recognised, or no source given.
    """
    found = _locate(source, place)
    if found[0].format in ("datasets", "hub"):
        name = found[0].uri if found[0].format == "hub" else source.path
        readers = [(name, lambda: DatasetReader(source, place, fingerprints.get(name)))]
    else:
        readers = [(at.uri, lambda at=at: ParquetReader(at) if at.format == "parquet" else JsonLinesReader(at)) for at in found]
    for name, open_reader in readers:
        with _readable(name):
            reader = open_reader()
        if not reader.columns:
            continue  # an empty shard among others; no rows at all is for the caller to judge
        form, columns = _resolve_columns(reader, source, place, name)
        yield InputFile(name, form, columns, reader)


# ------------------------------------------------------------------------------------------------------- where it is


def _locate(source: DataSource, place: str) -> list[Location]:
    with _readable(f"{place}.path"):
        return _located(source, place)


def _located(source: DataSource, place: str) -> list[Location]:
    filesystem, path = _filesystem(source, place)
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        if _is_hub_name(source):
            return [Location("hub", f"hf://datasets/{source.path}" + (f"@{source.revision}" if source.revision else ""))]
        raise DataError(f"{place}.path: there is no file or folder {source.path!r}", hint=_near(source.path))
    if info.type == pafs.FileType.File:
        return [Location(_format_of(path, source, place), source.path, filesystem, path)]

    files = {full: full[len(path) :].strip("/") for full in sorted(_files_below(filesystem, path, place))}
    is_saved = bool({"state.json", "dataset_dict.json"} & set(files.values()))
    if source.format == "datasets" or (source.format == "auto" and is_saved):
        if not is_saved:
            raise DataError(f"{place}: {source.path!r} is not a saved `datasets` directory", hint="set format: auto, parquet or jsonl")
        return [Location("datasets", f"{source.path.rstrip('/')}/{below}", filesystem, full) for full, below in files.items()]
    wanted = {source.format} if source.format != "auto" else {"parquet", "jsonl"}
    found = [
        Location(kind, f"{source.path.rstrip('/')}/{below}", filesystem, full)
        for full, below in files.items()
        if not any(part.startswith((".", "_")) for part in below.split("/")) and (kind := _suffix_format(below)) in wanted
    ]
    if not found:
        raise DataError(
            f"{place}.path: folder {source.path!r} holds no {' or '.join(sorted(wanted))} file",
            hint=f"files are recognised by {', '.join(_SUFFIXES)}; there: {', '.join(list(files.values())[:5]) or 'nothing'}",
        )
    return found


def _files_below(filesystem: pafs.FileSystem, folder: str, place: str) -> Iterator[str]:
    """Paths of all files, links followed. Arrow itself would follow a link to a folder above until the system stops it."""
    if not isinstance(filesystem, pafs.LocalFileSystem):
        entries = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True))
        yield from (entry.path for entry in entries if entry.type == pafs.FileType.File)
        return
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        here = Path(parent).resolve()
        for name in folders:
            if here.is_relative_to((here / name).resolve()):
                raise DataError(f"{place}.path: {parent}/{name} is a link to a folder that contains it", hint="remove that link")
        for path in (os.path.join(parent, name) for name in files):
            if _suffix_format(path) and not os.path.isfile(path):
                raise DataError(f"{place}.path: {path} is a link to nothing, or no ordinary file", hint="remove it, or mend the link")
            yield path


def _raise(error: OSError) -> None:
    raise error


def _filesystem(source: DataSource, place: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in source.path:
        return pafs.LocalFileSystem(), os.path.expanduser(source.path)
    if "@" in urlsplit(source.path).netloc:  # pyarrow would take s3://key:secret@bucket, and the path is recorded
        raise DataError(
            f"{place}.path holds credentials",
            hint="give s3://bucket/key alone, and the credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    try:
        return pafs.FileSystem.from_uri(source.path)
    except (pa.ArrowException, OSError, ValueError) as error:
        hint = "use a local path, file:///…, s3://bucket/key, gs://bucket/key, or a dataset name without a scheme"
        raise DataError(f"{place}.path: cannot open {source.path!r}: {error}", hint=hint) from error


def _is_hub_name(source: DataSource) -> bool:
    """A name such as ``owner/dataset``, unless its suffix or an existing parent folder says that a file was meant."""
    if source.format == "datasets":
        return _HUB_NAME.fullmatch(source.path) is not None
    owner, _, name = source.path.partition("/")
    is_file = _suffix_format(source.path) is not None or (name != "" and Path(owner).is_dir())
    return source.format == "auto" and not is_file and _HUB_NAME.fullmatch(source.path) is not None


def _suffix_format(path: str) -> Literal["parquet", "jsonl"] | None:
    suffixes = [s.lower() for s in Path(path).suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return _SUFFIXES.get(suffixes[-1]) if suffixes else None


def _format_of(path: str, source: DataSource, place: str) -> Format:
    kind = _suffix_format(path) if source.format == "auto" else source.format
    if kind is None or kind == "datasets":
        problem = "cannot tell the format of" if kind is None else "a saved `datasets` directory is needed, not the file"
        raise DataError(f"{place}: {problem} {source.path!r}", hint="set format: parquet or jsonl")
    return kind


def _near(path: str) -> str:
    """Names like the missing one in the nearest folder that exists."""
    wanted = Path(os.path.expanduser(path))
    folder = next((p for p in wanted.parents if p.is_dir()), Path())
    missing = wanted.relative_to(folder).parts[0]
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    close = get_close_matches(missing, names, n=3, cutoff=0.5)
    listing = f"did you mean {' or '.join(repr(str(folder / c)) for c in close)}? " if close else ""
    return f"{listing}paths are relative to the working directory; {str(folder)!r} holds: {', '.join(names[:8]) or 'nothing'}"


def _sha256(at: Location) -> str:
    digest = hashlib.sha256()
    with _readable(at.uri), at.filesystem.open_input_stream(at.path, compression=None) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _resolve_revision(source: DataSource, place: str) -> str:
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(source.path, timeout=20).sha)
    except Exception as error:  # the hub client's network errors share no base class
        raise DataError(
            f"{place}.path: {source.path!r} is no local path, and as a dataset name it cannot be resolved: {headline(error)}",
            hint=f"check the name and the network; offline, set {place}.revision to a commit in the local cache, or give a file. "
            + _near(source.path),
        ) from error


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turns a reader's low-level failure into a DataError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:  # UnicodeError: names of files and columns
        hint = "the file may be damaged, of another format (set `format`), or not permitted to this user"
        raise DataError(f"cannot read {name}: {headline(error)}", hint=hint) from error


# ------------------------------------------------------------------------------------------------------- columns


def _resolve_columns(reader: Reader, source: DataSource, place: str, name: str) -> tuple[Form, dict[str, str]]:
    there = reader.columns
    explicit = {field: column for field, column in source.columns if column is not None}
    absent = {field: column for field, column in explicit.items() if column not in there}
    if absent:
        lines = "; ".join(f"{place}.columns.{field}: no column {column!r}" for field, column in absent.items())
        raise DataError(f"{name}: {lines}", hint=did_you_mean(next(iter(absent.values())), there))

    form = _form_of(there, explicit, place, name)
    twice = sorted({column for column in there if there.count(column) > 1} & {explicit.get(f, f) for f in _FIELDS[form]})
    if twice:
        raise DataError(f"{name}: column {', '.join(twice)} is there twice", hint="keep one of them, or rename the other")
    unused = explicit.keys() - set(_FIELDS[form])
    if unused:
        hint = f"{name} is read in the {form} form, which has {', '.join(_FIELDS[form])}"
        raise DataError(f"{place}.columns: {', '.join(sorted(unused))} would be ignored", hint=hint)
    columns = {field: explicit.get(field, field) for field in _FIELDS[form]}
    if place in _WANTED and columns["id"] not in there and "record_id" in there:
        columns["id"] = "record_id"  # our own tables
    present = {field: column for field, column in columns.items() if column in there}
    if (
        form != "golden"
        and place not in _WANTED
        and source.source is None
        and not present.keys() & {"sources", "chosen_source", "rejected_source"}
    ):
        needed = "sources" if form == "listwise" else "chosen_source and rejected_source"
        raise DataError(
            f"{place}: {name} does not say who wrote its responses, and calibration compares sources",
            hint=f"set {place}.source: NAME for all rows, or {place}.columns.{needed}; columns there: {', '.join(sorted(there))}",
        )
    return form, columns if reader.ragged else present


def _form_of(there: list[str], explicit: Mapping[str, str], place: str, name: str) -> Form:
    def has(field: str) -> bool:
        return explicit.get(field, field) in there

    if place.startswith("data.golden"):
        if has("response"):
            return "golden"
        raise DataError(
            f"{place}: {name} has no column 'response'", hint=f"set {place}.columns.response; {did_you_mean('response', there)}"
        )
    wanted = _WANTED.get(place)
    if wanted is not None and has(wanted[0]):
        return wanted[1]
    if has("responses") and not {"chosen", "rejected"} & explicit.keys():
        return "listwise"
    if has("chosen") and has("rejected"):
        return "pairwise"
    single = "responses" if wanted is None else wanted[0]
    missing = next((f for f in ("chosen", "rejected") if not has(f) and (has("chosen") or has("rejected"))), single)
    raise DataError(
        f"{place}: {name} has neither a column {single!r} nor both 'chosen' and 'rejected'",
        hint=f"map yours in {place}.columns, e.g. {missing}: NAME; {did_you_mean(missing, there)}",
    )

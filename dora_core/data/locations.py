"""Locating an input: the files of a path, of a folder, of a URI, or a dataset name.

Paths are local, relative to the working directory, or URIs of ``pyarrow.fs`` (``s3://…``). `format: auto` goes by the file's ending, by
the files that mark a folder as one dataset, and, where there is neither file nor folder, by the look of a dataset name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from dora_core.config.data import DataSource
from dora_core.data.formats import AUTO, FORMATS, File, Format, Location, headline, neighbours
from dora_core.errors import DataError

_COMPRESSIONS = {".gz", ".bz2", ".zst"}
_BY_SUFFIX = {suffix: format for format in FORMATS.values() for suffix in format.suffixes}
_FILE_FORMATS = sorted({format.name for format in _BY_SUFFIX.values()})


def locate(source: DataSource, place: str) -> list[Location]:
    """The locations of one input, in the order of their names; at least one.

    Args:
        place: key of the configuration, for messages.

    Raises:
        DataError: nothing is there, nothing that is there can be read, or the path holds credentials.
    """
    with readable(f"{place}.path"):
        return _located(source, place)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn low-level failures of reading ``name`` into a DataError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:  # UnicodeError: names of files and columns
        hint = "the file may be damaged, of another format (set `format`), or not permitted to this user"
        raise DataError(f"cannot read {name}: {headline(error)}", hint=hint) from error


def _located(source: DataSource, place: str) -> list[Location]:
    filesystem, path = _filesystem(source.path, place)
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        return [_dataset_name(source, place)]
    if info.type == pafs.FileType.File:
        return [_location(_format_of_file(path, source, place), source, place, [File(source.path, filesystem, path)])]
    files = {full[len(path) :].strip("/"): full for full in sorted(_files_below(filesystem, path, place))}
    return _in_folder({below: File(f"{source.path.rstrip('/')}/{below}", filesystem, full) for below, full in files.items()}, source, place)


def _in_folder(files: dict[str, File], source: DataSource, place: str) -> list[Location]:
    """The locations of a folder, given its files by their path below it: the folder as a whole, or each file that can be read."""
    allowed = _allowed(source)
    whole = next((format for format in allowed if format.marks & files.keys()), None)
    if whole is not None:
        return [_location(whole, source, place, files.values(), name=source.path)]
    wanted = {format.name: format for format in allowed if format.suffixes}
    if not wanted:
        hint = f"set format: {AUTO}, {' or '.join(_FILE_FORMATS)}"
        raise DataError(f"{place}: {source.path!r} is not a {allowed[0].noun}", hint=hint)
    visible = [below for below in files if not any(part.startswith((".", "_")) for part in below.split("/"))]
    found = [(format, files[below]) for below in visible if (format := _format_of_name(below)) in wanted.values()]
    if not found:
        raise DataError(
            f"{place}.path: folder {source.path!r} holds no {' or '.join(sorted(wanted))} file",
            hint=f"files are recognised by {', '.join(_BY_SUFFIX)}; there: {', '.join(list(files)[:5]) or 'nothing'}",
        )
    return [_location(format, source, place, [file]) for format, file in found if format is not None]


def _location(format: Format, source: DataSource, place: str, files: Any, name: str | None = None) -> Location:
    """The location of files; it is called after its only file unless ``name`` is given."""
    files = tuple(files)
    return Location(format, name or files[0].uri, source.path, place, files, source.split)


def _dataset_name(source: DataSource, place: str) -> Location:
    """A path without a file or folder as a dataset name, unless its ending or an existing parent folder shows that a file was meant.

    Raises:
        DataError: it cannot be a dataset name.
    """
    owner, _, name = source.path.partition("/")
    means_file = _format_of_name(source.path) is not None or (name != "" and Path(owner).is_dir())
    for format in _allowed(source):
        remote = format.remote
        if remote is not None and remote.matches(source.path) and not (source.format == AUTO and means_file):
            uri = f"{remote.scheme}{source.path}" + (f"@{source.revision}" if source.revision else "")
            return Location(format, uri, source.path, place, split=source.split, revision=source.revision)
    raise DataError(f"{place}.path: there is no file or folder {source.path!r}", hint=neighbours(source.path))


def _allowed(source: DataSource) -> list[Format]:
    return list(FORMATS.values()) if source.format == AUTO else [FORMATS[source.format]]


def _format_of_file(path: str, source: DataSource, place: str) -> Format:
    found = _format_of_name(path) if source.format == AUTO else FORMATS[source.format]
    if found is None or not found.suffixes:
        problem = "cannot tell the format of" if found is None else f"a {found.noun} is needed, not the file"
        raise DataError(f"{place}: {problem} {source.path!r}", hint=f"set format: {' or '.join(_FILE_FORMATS)}")
    return found


def _format_of_name(path: str) -> Format | None:
    suffixes = [s.lower() for s in Path(path).suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return _BY_SUFFIX.get(suffixes[-1]) if suffixes else None


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
            if _format_of_name(path) and not os.path.isfile(path):
                raise DataError(f"{place}.path: {path} is a broken link or not a regular file", hint="remove it, or repair the link")
            yield path


def _raise(error: OSError) -> None:
    raise error


def _filesystem(path: str, place: str) -> tuple[Any, str]:
    if "://" not in path:
        return pafs.LocalFileSystem(), os.path.expanduser(path)
    if "@" in urlsplit(path).netloc:  # pyarrow would take s3://key:secret@bucket, and the path is recorded
        raise DataError(
            f"{place}.path holds credentials",
            hint="give s3://bucket/key alone, and the credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    try:
        filesystem, below = pafs.FileSystem.from_uri(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        hint = "use a local path, file:///…, s3://bucket/key, gs://bucket/key, or a dataset name without a scheme"
        raise DataError(f"{place}.path: cannot open {path!r}: {error}", hint=hint) from error
    return filesystem, below

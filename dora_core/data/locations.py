"""Locating an input: the files of a path, a glob, a folder or a URI, or a dataset name.

Paths are local, relative to the working directory, or URIs of ``pyarrow.fs`` (``s3://…``). `format: auto` goes by the file's ending, by
the files that mark a folder as one dataset, and, where there is neither file nor folder, by the look of a dataset name. Which files of a
folder belong to which split is the subject of ``folders.py``.
"""

from __future__ import annotations

import glob
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from dora_core.data.folders import DataFile, Folder
from dora_core.data.formats import AUTO, COMPRESSED, DEFAULT_SPLIT, FORMATS, File, Format, Location, headline, neighbours
from dora_core.data.globs import expand_braces, fixed_folder, is_glob, matching
from dora_core.data.splits import Part, parse_split, split_of_file
from dora_core.errors import DataError
from dora_core.remote_files import open_filesystem

if TYPE_CHECKING:
    from dora_core.config.data import DataSource

_BY_SUFFIX = {suffix: format for format in FORMATS.values() for suffix in format.suffixes}
_FILE_FORMATS = sorted({format.name for format in _BY_SUFFIX.values()})
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


def locate(source: DataSource, place: str) -> list[Location]:
    """The locations of one input: the terms of its split in their order, in each the paths, in each the names of the files.

    Args:
        place: key of the configuration, for messages.

    Raises:
        DataError: nothing is there, nothing that is there can be read, a split or subset is not there, or the path holds credentials.
    """
    with readable(f"{place}.path"):
        search = _Search(source, place, tuple(parse_split(source.split, place)))
        found = [at for path in source.paths for at in search.located(path)]
    unique: dict[tuple[str, int], Location] = {}
    for at in found:
        if unique.setdefault((at.name, at.part), at) is not at:
            again = f"{place}.path: {at.name} is named more than once and read once"
            unique[at.name, at.part] = replace(unique[at.name, at.part], notes=(*unique[at.name, at.part].notes, again))
    return sorted(unique.values(), key=lambda at: at.part)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn low-level failures of reading ``name`` into a DataError."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, UnicodeError, lzma.LZMAError, zlib.error) as error:  # UnicodeError: names of files
        hint = "the file may be damaged, of another format (set `format`), or not permitted to this user"
        raise DataError(f"cannot read {name}: {headline(error)}", hint=hint) from error


@dataclass(frozen=True)
class _Search:
    """The search for the locations of one input."""

    source: DataSource
    place: str
    parts: tuple[Part, ...]

    def located(self, path: str) -> list[Location]:
        """The locations of one path."""
        filesystem, inner = _filesystem(path, self.place)
        info = filesystem.get_file_info(inner)
        if info.type == pafs.FileType.File:
            return self._file(path, filesystem, inner)
        if info.type == pafs.FileType.Directory:
            return self._folder(path, filesystem, inner)
        if is_glob(path):
            return self._glob(path, filesystem, inner)
        return self._dataset_name(path)

    # ------------------------------------------------------------------------------------------------ a file by its name

    def _file(self, path: str, filesystem: Any, inner: str) -> list[Location]:
        format = self._format_of_file(path)
        self._refuse_options({"subset", "data_dir", "data_files"} - format.options, f"{path} is a file")
        named = split_of_file(PurePosixPath(path).name)
        for split in {part.split for part in self.parts} - {DEFAULT_SPLIT, named}:
            if "split" not in format.options:
                kind = "has no splits" if named is None else f"is the split {named} by its name"
                raise DataError(
                    f"{self.place}.split: {path} {kind}, so there is no {split!r}",
                    hint=f"leave {self.place}.split out to read all rows",
                )
        return self._locations(format, [File(path, filesystem, inner)], path, ())

    # ------------------------------------------------------------------------------------------------ folders and globs

    def _folder(self, path: str, filesystem: Any, inner: str) -> list[Location]:
        if self.source.data_dir is not None:
            below = self.source.data_dir.strip("/")
            path, inner = f"{path.rstrip('/')}/{below}", f"{inner.rstrip('/')}/{below}"
            if filesystem.get_file_info(inner).type != pafs.FileType.Directory:
                hint = f"it is a folder below {self.place}.path"
                raise DataError(f"{self.place}.data_dir: there is no folder {path!r}", hint=hint)
        files = {full[len(inner) :].strip("/"): full for full in sorted(_files_below(filesystem, inner, self.place))}
        whole = next((format for format in self._allowed() if format.marks & files.keys()), None)
        if whole is not None:
            self._refuse_options({"subset", "data_files"}, f"{path} is a {whole.noun}")
            members = [File(f"{path.rstrip('/')}/{below}", filesystem, full) for below, full in files.items()]
            return [location for part in self._numbered() for location in [self._whole(whole, members, path, part)]]
        self._refuse_marks_only(path)
        found = {below: File(f"{path.rstrip('/')}/{below}", filesystem, full) for below, full in files.items()}
        folder = Folder(path, self.place, {below: self._data_file(below, file) for below, file in found.items()}, tuple(self._suffixed()))
        return self._chosen(folder.split_files(self.source.subset, self.source.data_files), folder)

    def _glob(self, path: str, filesystem: Any, inner: str) -> list[Location]:
        self._refuse_options({"subset", "data_dir", "data_files"}, f"{path} is a glob")
        self._refuse_marks_only(path)
        base = fixed_folder(inner)
        matches = _matches(filesystem, inner, self.place)
        prefix = path[: len(path) - len(inner)] if path.endswith(inner) else ""  # s3://
        start = len(base) + 1 if base else 0
        found = {full[start:]: File(prefix + full, filesystem, full) for full in matches}
        if not found:
            raise DataError(f"{self.place}.path: no file matches {path!r}", hint=neighbours(fixed_folder(path) or "."))
        folder = Folder(path, self.place, {below: self._data_file(below, file) for below, file in found.items()}, tuple(self._suffixed()))
        return self._chosen(folder.split_files(None, None), folder, is_glob=True)

    def _chosen(self, groups: dict[str | None, list[str]], folder: Folder, is_glob: bool = False) -> list[Location]:
        located = []
        for number, part in self._numbered():
            below, notes = folder.choose(groups, part.split, alone_is_enough=is_glob)
            for name in below:
                data = folder.files[name]
                assert data.format is not None, "the folder chose among files with a format"
                at = self._location(data.format, [data.file], data.file.uri, (number, part), data.partitions)
                located.append(replace(at, split=DEFAULT_SPLIT, notes=notes if name == below[0] else ()))
        return located

    def _data_file(self, below: str, file: File) -> DataFile:
        return DataFile(file, _format_of_name(below), _partitions(file.uri))

    # ------------------------------------------------------------------------------------------------ dataset names

    def _dataset_name(self, path: str) -> list[Location]:
        """A path without a file or folder as a dataset name, unless its ending or an existing parent folder shows a file was meant.

        Raises:
            DataError: it cannot be a dataset name.
        """
        owner, _, name = path.partition("/")
        means_file = _format_of_name(path) is not None or (name != "" and Path(owner).is_dir())
        for format in self._allowed():
            remote = format.remote
            if remote is not None and remote.matches(path) and not (self.source.format == AUTO and means_file):
                self._refuse_options({"query"} - format.options, f"{path} is a dataset name")
                uri = f"{remote.scheme}{path}" + (f"@{self.source.revision}" if self.source.revision else "")
                return [self._whole(format, [], path, part, name=uri) for part in self._numbered()]
        raise DataError(f"{self.place}.path: there is no file or folder {path!r}", hint=neighbours(path))

    # ------------------------------------------------------------------------------------------------ shared

    def _numbered(self) -> list[tuple[int, Part]]:
        return list(enumerate(self.parts))

    def _locations(self, format: Format, files: Sequence[File], name: str, notes: tuple[str, ...]) -> list[Location]:
        partitions = _partitions(name)
        return [replace(self._location(format, files, name, part, partitions), notes=notes) for part in self._numbered()]

    def _whole(self, format: Format, files: Sequence[File], path: str, part: tuple[int, Part], name: str | None = None) -> Location:
        """A saved dataset or a dataset name; ``data_dir`` of a folder is part of its path already."""
        at = self._location(format, files, name or path, part, ())
        chosen = at if files else replace(at, subset=self.source.subset, data_dir=self.source.data_dir, data_files=self.source.data_files)
        return replace(chosen, path=path)

    def _location(
        self, format: Format, files: Sequence[File], name: str, part: tuple[int, Part], partitions: tuple[tuple[str, str | None], ...]
    ) -> Location:
        self._refuse_options({"query"} - format.options, f"{name} is a {format.noun}")
        number, (split, rows) = part
        revision = None if files else self.source.revision
        return Location(format, name, name, self.place, tuple(files), split, revision, rows, number, partitions, query=self.source.query)

    def _refuse_options(self, names: Iterable[str], reason: str) -> None:
        """Refuse read options that would be ignored."""
        for name in sorted(names):
            if getattr(self.source, name) is not None:
                raise DataError(f"{self.place}.{name}: {reason}, which has no `{name}`", hint=f"leave {self.place}.{name} out")

    def _refuse_marks_only(self, path: str) -> None:
        if not self._suffixed():
            hint = f"set format: {AUTO}, {' or '.join(_FILE_FORMATS)}"
            raise DataError(f"{self.place}: {path!r} is not a {self._allowed()[0].noun}", hint=hint)

    def _allowed(self) -> list[Format]:
        return list(FORMATS.values()) if self.source.format == AUTO else [FORMATS[self.source.format]]

    def _suffixed(self) -> list[Format]:
        """Formats of files that may be read: with a name of one format, its family too (``jsonl`` reads ``.json`` files)."""
        families = {format.kin for format in self._allowed() if format.suffixes}
        return [format for format in FORMATS.values() if format.suffixes and format.kin in families]

    def _format_of_file(self, path: str) -> Format:
        found = _format_of_name(path) if self.source.format == AUTO else FORMATS[self.source.format]
        if found is None or not found.suffixes:
            problem = "cannot tell the format of" if found is None else f"a {found.noun} is needed, not the file"
            unpack = "unpack it and give the files, or " if path.lower().endswith(_ARCHIVES) else ""
            raise DataError(f"{self.place}: {problem} {path!r}", hint=f"{unpack}set format: {' or '.join(_FILE_FORMATS)}")
        if not found.compressible and path.lower().endswith(COMPRESSED):
            raise DataError(
                f"{self.place}: {path!r} is compressed, and a {found.noun} is read only as it is",
                hint="decompress it; it is compact itself",
            )
        return found


def _partitions(path: str) -> tuple[tuple[str, str | None], ...]:
    """Keys and values of the folders ``key=value`` of a path as the user wrote it, as Hive names them."""
    found = {}
    for folder in path.split("/")[:-1]:
        key, equals, value = folder.partition("=")
        if equals and key.isidentifier():
            found[key] = None if value == _NULL_PARTITION else unquote(value)
    return tuple(found.items())


def _format_of_name(path: str) -> Format | None:
    suffixes = [s.lower() for s in PurePosixPath(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return _BY_SUFFIX.get(suffixes[-1]) if suffixes else None


def _matches(filesystem: Any, pattern: str, place: str) -> list[str]:
    """Files that a glob matches, and the files below the folders that it matches, in the order of their names; hidden ones left out."""
    found: set[str] = set()
    for one in expand_braces(pattern):
        if isinstance(filesystem, pafs.LocalFileSystem):
            matches = glob.glob(one, recursive=True)
        else:
            entries = filesystem.get_file_info(pafs.FileSelector(fixed_folder(one), recursive=True, allow_not_found=True))
            matches = matching([one], [entry.path for entry in entries])
        for match in matches:
            info = filesystem.get_file_info(match)
            if info.type == pafs.FileType.File:
                found.add(match)
            elif info.type == pafs.FileType.Directory and not one.endswith("**"):
                found.update(_files_below(filesystem, match.rstrip("/"), place))
    return sorted(found)


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
    # The query of a URI begins with "?", so the name is split off before a glob with one is parsed.
    base = fixed_folder(path) if is_glob(path) else path
    try:
        filesystem, below = open_filesystem(base)
    except (pa.ArrowException, OSError, ValueError) as error:
        hint = "use a local path, file:///…, s3://bucket/key, gs://bucket/key, or a dataset name without a scheme"
        raise DataError(f"{place}.path: cannot open {path!r}: {error}", hint=hint) from error
    return filesystem, below + path[len(base) :]

"""The descriptor of an input format, the interface of its reader, and the search for formats in this folder.

**A new format** is one file in this folder that ends with ``FORMAT = Format(…)``; nothing else names it. The allowed values of `format`
in the configuration, the endings that are looked for in folders and the lists in error messages follow from :data:`FORMATS`.

This package is imported with the configuration, by every command. Import pyarrow and other heavy libraries inside the reader.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    from dora_core.data.splits import Slice

DataFiles = str | list[str] | dict[str, str | list[str]]
"""Files of a dataset: a glob, several, or these per split."""
AUTO = "auto"
"""Value of `format` that chooses the format by the files at the path; no format may have this name."""


DEFAULT_SPLIT = "train"
"""The split that is read where none is named, and the name for the rows of an input without splits."""


class Reader(Protocol):
    """An open input: one file, or a dataset as a whole.

    Attributes:
        columns: names of its columns; a name may occur twice.
        types: Arrow type of each column; empty where the format knows none before all rows are read.
        ragged: rows may hold fields that ``columns`` does not list.
        notes: choices of the reader for the user to see, such as the field of a JSON document that holds the rows.
    """

    @property
    def columns(self) -> list[str]: ...
    @property
    def types(self) -> Mapping[str, pa.DataType]: ...
    @property
    def ragged(self) -> bool: ...
    @property
    def notes(self) -> tuple[str, ...]: ...

    def rows(self, columns: Mapping[str, str] | None, batch_rows: int) -> Iterator[tuple[int, Any]]:
        """(position, row) of every row: a dict of the fields in ``columns`` (field → the file's column), another value, or a
        :class:`~dora_core.data.problems.Problem`. None: every column under its own name, also those that ``columns`` does not list.
        An empty mapping gives one value per row, to count them."""
        ...


class File(NamedTuple):
    """A file whose bytes belong to an input. ``uri`` is the path as the user wrote it, plus the path below a folder."""

    uri: str
    filesystem: FileSystem
    path: str


@dataclass(frozen=True)
class Location:
    """A file, a folder or a dataset name that one reader opens.

    Attributes:
        name: in messages and facts; of a dataset name also its key in the fingerprints.
        path: as the user wrote it; with ``data_dir`` where that is a folder below it.
        place: key of the configuration, for messages only.
        files: whose bytes are the content, in the order of their names; empty for a dataset name.
        split: name of one split, for datasets with several.
        revision: commit of a dataset name.
        rows: slice of the split; it counts over all locations of the same ``part``.
        part: index of the term of the split expression.
        partitions: keys and values in the folders of a file's path, ``source=human``.
        subset, data_dir, data_files: choice inside a dataset name.
        query: SQL of a database.
        notes: choices among the files, for the user to see.
    """

    format: Format
    name: str
    path: str
    place: str
    files: tuple[File, ...] = ()
    split: str = DEFAULT_SPLIT
    revision: str | None = None
    rows: Slice | None = None
    part: int = 0
    partitions: tuple[tuple[str, str | None], ...] = ()
    subset: str | None = None
    data_dir: str | None = None
    data_files: DataFiles | None = None
    query: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Remote:
    """Datasets that a hub stores under a name. Their fingerprint is a commit, not a checksum.

    Attributes:
        matches: whether a path may be such a name.
        scheme: in front of the name in fingerprints and messages.
        commit: the commit that a name means now.
    """

    matches: Callable[[str], bool]
    scheme: str
    commit: Callable[[Location], str]


@dataclass(frozen=True)
class Format:
    """Descriptor of an input format. A format has ``suffixes`` (each file is read alone) or ``marks`` (a folder is read as a whole).

    Attributes:
        name: value of `format` in the configuration.
        noun: a file or folder of this format, in messages.
        reader: opens a location of this format; raises ``DataError`` or an error of pyarrow or the system.
        suffixes: endings of its files, lower case, with the dot; an ending of compression comes after them.
        marks: names of files, one of which every folder of this format has directly below it.
        remote: where the format also has datasets on a hub.
        family: formats of one family may lie in one folder; their own name by default.
        compressible: a file may be compressed as a whole (.gz, .bz2, .zst, .xz).
        options: read options of an input that the reader itself takes: ``split``, ``subset``, ``data_dir``, ``data_files``, ``query``.
    """

    name: str
    noun: str
    reader: Callable[[Location], Reader]
    suffixes: tuple[str, ...] = ()
    marks: frozenset[str] = frozenset()
    remote: Remote | None = None
    family: str = ""
    compressible: bool = False
    options: frozenset[str] = frozenset()

    @property
    def kin(self) -> str:
        """Name of the family."""
        return self.family or self.name


def find_formats(package: str, folders: Iterable[str]) -> dict[str, Format]:
    """The ``FORMAT`` of every module of ``package``, by name, in the order of their names.

    This module and those with a leading underscore (parts that formats share) are left out.

    Raises:
        TypeError: a module does not end with a descriptor.
        ValueError: two formats share a name or an ending, or a format is called ``auto`` or has neither endings nor marks.
    """
    found: dict[str, Format] = {}
    owner: dict[str, str] = {AUTO: __name__}
    for info in sorted(pkgutil.iter_modules(folders), key=lambda info: info.name):
        module = f"{package}.{info.name}"
        if module == __name__ or info.name.startswith("_"):
            continue
        described = getattr(importlib.import_module(module), "FORMAT", None)
        if not isinstance(described, Format):
            raise TypeError(f"{module} does not define FORMAT = Format(…), and every file of this folder is a format")
        if bool(described.suffixes) == bool(described.marks):
            raise ValueError(f"{module}: give either suffixes (a format of files) or marks (a format of folders)")
        for key in (described.name, *described.suffixes, *described.marks):
            if key in owner:
                raise ValueError(f"{module}: {key!r} belongs to {owner[key]} already")
            owner[key] = module
        found[described.name] = described
    return dict(sorted(found.items()))


# ------------------------------------------------------------------------------------------------------- for messages


def headline(error: BaseException) -> str:
    """Type and first line of an error of another library."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def neighbours(path: str) -> str:
    """Hint for a missing path: similar names in the nearest folder that exists, and its content."""
    wanted = Path(os.path.expanduser(path))
    folder = next((p for p in wanted.parents if p.is_dir()), Path())
    missing = wanted.relative_to(folder).parts[0]
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    close = get_close_matches(missing, names, n=3, cutoff=0.5)
    listing = f"did you mean {' or '.join(repr(str(folder / c)) for c in close)}? " if close else ""
    return f"{listing}paths are relative to the working directory; {str(folder)!r} holds: {', '.join(names[:8]) or 'nothing'}"

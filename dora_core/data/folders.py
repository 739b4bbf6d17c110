"""Files of a folder or glob: which hold data, to which split they belong, and which of them are read.

Splits come, in this order, from `data_files` of the configuration, from the README.md of a hub folder, and from names as on the hub
(``train-00000-of-00002.parquet``, ``test.jsonl``, ``data/dev/…``). Where nothing shows splits, all files are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from dora_core.data.dataset_card import CARD, declared_files
from dora_core.data.formats import DEFAULT_SPLIT, FORMATS, File, Format
from dora_core.data.globs import matching
from dora_core.data.splits import is_named_shard, split_of_file
from dora_core.errors import DataError, did_you_mean

METADATA = {
    "config.json", "croissant.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "metadata.json", "state.json"
}  # fmt: skip
"""Files of a dataset that describe it; never data."""
SHOWN = 5


class DataFile(NamedTuple):
    """A file below a folder; its format by its ending, None for another kind of file."""

    file: File
    format: Format | None
    partitions: tuple[tuple[str, str | None], ...]


Groups = dict[str | None, list[str]]
"""Files by split; None: no split is shown."""


@dataclass(frozen=True)
class Folder:
    """A folder or glob with its files, by their paths below it.

    Attributes:
        formats: that may be read.
    """

    path: str
    place: str
    files: dict[str, DataFile]
    formats: tuple[Format, ...]

    def split_files(self, subset: str | None, data_files: str | list[str] | dict[str, str | list[str]] | None) -> Groups:
        """The data files by split, in the order of their names.

        Raises:
            DataError: no file can be read, a pattern matches none, or the subset is not there.
        """
        if data_files is not None:
            given = data_files if isinstance(data_files, dict) else {None: data_files}
            return {split: self._matched(patterns, f"{self.place}.data_files") for split, patterns in given.items()}
        card = self.files.get(CARD)
        declared = None if card is None else declared_files(_text_of(card.file), subset, self.place)
        if isinstance(declared, str):
            return self._by_name(declared)
        if declared is not None:
            return {split: self._matched(patterns, f"{CARD}: data_files of {split}") for split, patterns in declared.items()}
        if subset is not None:
            raise DataError(
                f"{self.place}.subset: {self.path} declares no subsets in a {CARD}",
                hint=f"name a folder below it in {self.place}.data_dir, or its files in {self.place}.data_files",
            )
        return self._by_name()

    def choose(self, groups: Groups, split: str, alone_is_enough: bool) -> tuple[list[str], tuple[str, ...]]:
        """The files of one split, and notes on those that are left out.

        Args:
            alone_is_enough: where all files are of one split, that one is meant by the default.

        Raises:
            DataError: there is no such split, it cannot be told from other files, or the files are of several formats.
        """
        named = {name: files for name, files in groups.items() if name is not None}
        others = groups.get(None, [])
        if not named and split != DEFAULT_SPLIT:
            raise DataError(
                f"{self.place}.split: {self.path} has no splits, so there is no {split!r}",
                hint=f"leave {self.place}.split out to read all rows, or name the files of each split in {self.place}.data_files",
            )
        if alone_is_enough and split == DEFAULT_SPLIT and len(groups) == 1:
            chosen = next(iter(groups.values()))
        elif not named:
            chosen = others
        else:
            chosen = self._of_split(named, others, split)
        self._refuse_several_formats(chosen)
        return chosen, self._notes(named, others, split if named else None, chosen)

    def _of_split(self, named: dict[str, list[str]], others: list[str], split: str) -> list[str]:
        if split not in named:
            unnamed = f"; files without a split: {_some(others)}" if others else ""
            of_preferences = [name for name in sorted(named) if name.startswith(split) and "pref" in name]
            meant = f"e.g. {of_preferences[0]!r} for its preferences" if of_preferences else did_you_mean(split, named)
            raise DataError(
                f"{self.place}.split: {self.path} has no split {split!r}, its splits are {', '.join(sorted(named))}{unnamed}",
                hint=f"set {self.place}.split; {meant}" + (f"; or give a glob in {self.place}.path" if others else ""),
            )
        if others and split == DEFAULT_SPLIT and not all(map(is_named_shard, named[split])):
            raise DataError(
                f"{self.place}.path: {self.path} holds files of the split {split} ({_some(named[split])}) and files of no split "
                f"({_some(others)})",
                hint=f"say which are read: a glob in {self.place}.path, or {self.place}.data_files",
            )
        return named[split]

    def _notes(self, named: dict[str, list[str]], others: list[str], split: str | None, chosen: list[str]) -> tuple[str, ...]:
        notes = []
        left = {name: files for name, files in named.items() if files is not chosen}
        if split is not None and (left or (others and others is not chosen)):
            rest = [f"split {name} ({len(files)} file{'s' * (len(files) > 1)})" for name, files in sorted(left.items())]
            rest += [f"files of no split ({_some(others)})"] if others and others is not chosen else []
            notes.append(f"{self.path}: split {split} is read; left out: {', '.join(rest)}")
        if ignored := [name for name, data in self.files.items() if data.format is None and is_visible(name) and not is_metadata(name)]:
            notes.append(f"{self.path}: files that hold no data in a known format are left out: {_some(ignored)}")
        return tuple(notes)

    def _refuse_several_formats(self, chosen: list[str]) -> None:
        by_family: dict[str, list[str]] = {}
        first: dict[str, str] = {}  # a format of each family, to set
        for name in chosen:
            format = self.files[name].format
            assert format is not None, "only files with a format are chosen"
            by_family.setdefault(format.kin, []).append(name)
            first.setdefault(format.kin, format.name)
        if len(by_family) > 1:
            there = "; ".join(f"{first[family]}: {_some(names)}" for family, names in sorted(by_family.items()))
            raise DataError(
                f"{self.place}.path: {self.path} holds files of several formats ({there})",
                hint=f"set {self.place}.format: {' or '.join(sorted(first.values()))}; or give a glob, or several inputs",
            )

    def _by_name(self, folder: str = "") -> Groups:
        """Groups by the names of the files, all or those below a folder of this one."""
        start = f"{folder}/" if folder not in ("", ".") else ""
        found = [name for name, data in self.files.items() if name.startswith(start) and self._is_data(name, data)]
        if not found:
            names = sorted({format.name for format in self.formats})
            where = self.path.rstrip("/") + f"/{start}" if start else self.path
            endings = ", ".join(suffix for format in FORMATS.values() for suffix in format.suffixes)
            raise DataError(
                f"{self.place}.path: folder {where!r} holds no {' or '.join(names)} file",
                hint=f"files are recognised by {endings}; there: {_some(list(self.files)) or 'nothing'}",
            )
        groups: Groups = {}
        for name in found:
            groups.setdefault(split_of_file(name[len(start) :]), []).append(name)
        return groups

    def _matched(self, patterns: str | list[str], declared_in: str) -> list[str]:
        wanted = [patterns] if isinstance(patterns, str) else patterns
        matched = matching([pattern.removeprefix("./") for pattern in wanted], list(self.files))
        found = [name for name in matched if self._is_data(name, self.files[name])]
        if not found:
            raise DataError(
                f"{declared_in}: no data file of {self.path} matches {', '.join(wanted)}",
                hint=f"patterns are relative to {self.path}; there: {_some(list(self.files)) or 'nothing'}",
            )
        return found

    def _is_data(self, name: str, data: DataFile) -> bool:
        return data.format in self.formats and is_visible(name) and not is_metadata(name)


def is_visible(below: str) -> bool:
    """Whether no part of a path begins with a dot or an underscore."""
    return not any(part.startswith((".", "_")) for part in below.split("/"))


def is_metadata(below: str) -> bool:
    """Whether a file describes a dataset (README, LICENSE, dataset_infos.json) and holds none of its rows."""
    name = PurePosixPath(below).name
    return name in METADATA or name.lower().endswith(".md") or name.lower().partition(".")[0] in {"readme", "license", "licence", "notice"}


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _text_of(file: File) -> str:
    with file.filesystem.open_input_stream(file.path, compression=None) as stream:
        return str(stream.read().decode("utf-8-sig", "replace"))

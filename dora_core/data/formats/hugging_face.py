"""Datasets of the ``datasets`` library: a directory written by ``save_to_disk``, or a dataset name at a pinned commit.

Memory-mapped, never loaded whole. A dataset name is fingerprinted by its commit; the hub is needed only to find that commit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from dora_core.data.arrow_rows import numbered_rows
from dora_core.data.formats.base import DEFAULT_SPLIT, Format, Location, Remote, headline, neighbours
from dora_core.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class DatasetReader:
    """One split of a dataset."""

    ragged = False

    def __init__(self, at: Location):
        import datasets

        loaded = _loaded(at)
        notes = []
        if isinstance(loaded, datasets.DatasetDict):
            if at.split not in loaded:
                unset = f"; name one in {at.place}.split" if at.split == DEFAULT_SPLIT else ""
                raise DataError(f"{at.place}.split: {at.path} has no split {at.split!r}{unset}", hint=did_you_mean(at.split, loaded))
            if rest := [f"{name} ({len(rows)} rows)" for name, rows in loaded.items() if name != at.split]:
                notes.append(f"{at.path}: split {at.split}; left out: {', '.join(rest)}")
            loaded = loaded[at.split]
        elif at.split not in {DEFAULT_SPLIT, str(loaded.split), PurePosixPath(at.path).name}:
            kind = f"is the split {loaded.split}" if loaded.split else "has no splits"
            raise DataError(
                f"{at.place}.split: {at.path} {kind}, so there is no {at.split!r}", hint=f"leave {at.place}.split out to read all rows"
            )
        self.notes = tuple(notes)
        self._dataset = loaded.with_format("arrow")
        self.columns: list[str] = loaded.column_names
        self.types: Mapping[str, pa.DataType] = {field.name: field.type for field in loaded.features.arrow_schema}

    def rows(self, columns: Mapping[str, str] | None, batch_rows: int) -> Iterator[tuple[int, Any]]:
        if columns is not None and not columns:
            yield from ((number, {}) for number in range(len(self._dataset)))
            return
        chosen = self._dataset if columns is None else self._dataset.select_columns(sorted(set(columns.values())))
        yield from numbered_rows(map(_validated, chosen.iter(batch_size=batch_rows)), columns)


def _loaded(at: Location) -> Any:
    """The dataset, or its splits.

    Raises:
        DataError: it cannot be loaded, or has several subsets and the one named is not among them.
    """
    import datasets

    try:
        if at.files:
            return datasets.load_from_disk(at.path)
        options = {"name": at.subset, "data_dir": at.data_dir, "data_files": at.data_files}
        return datasets.load_dataset(at.path, revision=at.revision, **{k: v for k, v in options.items() if v is not None})
    except Exception as error:  # a damaged folder raises anything, and the hub client's network errors share no base class
        if not at.files and (subsets := _subsets_of(error)):
            problem = "has several subsets" if at.subset is None else f"has no subset {at.subset!r}"
            allowed = did_you_mean(at.subset or "", subsets)
            raise DataError(f"{at.place}.subset: dataset {at.path!r} {problem}", hint=f"set {at.place}.subset; {allowed}") from error
        version, hint = "", "the folder is damaged or incomplete: save it again"
        if not at.files:
            version = f" at {(at.revision or 'its newest commit')[:12]}"
            hint = "check the name and revision; without a network it must be in the local Hugging Face cache, or give a file"
        raise DataError(f"{at.place}.path: dataset {at.path!r}{version} cannot be loaded: {headline(error)}", hint=hint) from error


def _subsets_of(error: Exception) -> list[str]:
    """The subsets that an error of ``datasets`` lists because none or an unknown one was named."""
    match = re.search(r"(?:among the available configs|Available):\s*(\[[^\]]*\])", str(error))
    if match is None or not isinstance(error, ValueError):
        return []
    return re.findall(r"'([^']+)'", match[1])


def _validated(batch: pa.Table) -> pa.Table:
    """The batch, checked: a damaged file that is mapped into memory would end this process instead of raising."""
    batch.validate(full=True)
    return batch


def _is_name(path: str) -> bool:
    """Whether a path may be a dataset name, such as ``owner/dataset``."""
    return _NAME.fullmatch(path) is not None


def _commit(at: Location) -> str:
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(at.path, timeout=20).sha)
    except Exception as error:  # the hub client's network errors share no base class
        raise DataError(
            f"{at.place}.path: {at.path!r} is not a local path, and as a dataset name it cannot be resolved: {headline(error)}",
            hint=f"check the name and the network; offline, set {at.place}.revision to a commit in the local cache, or give a file. "
            + neighbours(at.path),
        ) from error


FORMAT = Format(
    "datasets",
    "saved `datasets` directory",
    DatasetReader,
    marks=frozenset({"state.json", "dataset_dict.json"}),
    remote=Remote(_is_name, "hf://datasets/", _commit),
    options=frozenset({"split", "subset", "data_dir", "data_files"}),
)

"""Datasets of the ``datasets`` library: a directory written by ``save_to_disk``, or a dataset name at a pinned commit.

Memory-mapped, never loaded whole. A dataset name is fingerprinted by its commit; the hub is needed only to find that commit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dora_core.data.arrow_rows import numbered_rows
from dora_core.data.formats.base import Format, Location, Remote, headline, neighbours
from dora_core.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class DatasetReader:
    """One split of a dataset."""

    ragged = False

    def __init__(self, at: Location):
        import datasets

        try:
            loaded = datasets.load_from_disk(at.path) if at.files else datasets.load_dataset(at.path, revision=at.revision)
        except Exception as error:  # a damaged folder raises anything, and the hub client's network errors share no base class
            version, hint = "", "the folder is damaged or incomplete: save it again"
            if not at.files:
                version = f" at {(at.revision or 'its newest commit')[:12]}"
                hint = "check the name and revision; without a network it must be in the local Hugging Face cache, or give a file"
            raise DataError(f"{at.place}.path: dataset {at.path!r}{version} cannot be loaded: {headline(error)}", hint=hint) from error
        if isinstance(loaded, datasets.DatasetDict):
            if at.split not in loaded:
                raise DataError(f"{at.place}.split: {at.path} has no split {at.split!r}", hint=did_you_mean(at.split, loaded))
            loaded = loaded[at.split]
        self._dataset = loaded.with_format("arrow")
        self.columns: list[str] = loaded.column_names

    def rows(self, columns: Mapping[str, str] | None, batch_rows: int) -> Iterator[tuple[int, Any]]:
        if columns is None:
            columns = {name: name for name in self.columns}
        batches = self._dataset.select_columns(sorted(set(columns.values()))).iter(batch_size=batch_rows)
        yield from numbered_rows(map(_validated, batches), columns)


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
)

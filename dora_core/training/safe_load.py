"""Loading a training checkpoint without running code that may be in it.

torch reads the tensors of a sharded checkpoint with ``weights_only``, but it pickles the table of contents and the scalars of the
optimiser, and unpickles both without restriction. A store can be shared: write access to it must not mean running code where training
resumes. Both are therefore read first by unpicklers that accept nothing but tensors, numbers and torch's own table.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

from dora_core.errors import StoreError

_TABLE = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
}  # fmt: skip


def load_safely(state: dict[str, Any], folder: Path, *, alone: bool) -> None:
    """Load into ``state`` with ``torch.distributed.checkpoint``; on every rank, or ``alone``.

    Raises:
        StoreError: the checkpoint holds pickled data that could run code.
    """
    with (folder / ".metadata").open("rb") as table:
        try:
            _TableReader(table).load()
        except pickle.UnpicklingError as error:
            raise _refused(f"its table of contents names {error}") from None
    with plain_errors():
        load(state, checkpoint_id=str(folder), planner=_Planner(), no_dist=alone)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise the first rank's exception, a stop included, in place of torch's summary of all ranks, which is not an ``Exception``."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


class _Planner(DefaultLoadPlanner):
    """Load plan that refuses scalars other than numbers."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        try:
            torch.load(value, weights_only=True)
        except pickle.UnpicklingError:
            raise _refused(f"{read_item.dest_index.fqn} is not a number") from None
        value.seek(0)
        super().load_bytes(read_item, value)


class _TableReader(pickle.Unpickler):
    """Unpickler limited to the classes that torch writes into a table of contents."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        is_path = module.partition(".")[0] == "pathlib" and name in ("PosixPath", "WindowsPath")
        if is_dtype or is_path or name in _TABLE.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def _refused(reason: str) -> StoreError:
    return StoreError(
        f"the checkpoint is not read: {reason}",
        hint="it was changed by hand, or another version of torch wrote it: delete the stage's scratch folder, and training starts afresh",
    )

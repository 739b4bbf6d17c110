"""Reading a training checkpoint without running what may be in it.

torch reads the tensors of a sharded checkpoint with ``weights_only``, but it pickles the table of contents and the scalars of the
optimiser, and unpickles both without restraint. A store can be shared: whoever may write there must not run code where training
resumes. Both are therefore looked at first, by readers that know nothing but tensors, numbers and torch's own table.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem

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
    """``dcp.load`` into ``state``; on every rank, or ``alone``.

    Raises:
        StoreError: the checkpoint holds what could run code.
    """
    with (folder / ".metadata").open("rb") as table:
        try:
            _TableReader(table).load()
        except pickle.UnpicklingError as error:
            raise _refused(f"its table of contents names {error}") from None
    with plain_errors():
        dcp.load(state, checkpoint_id=str(folder), planner=_Planner(), no_dist=alone)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """What the first rank met, a stop included, in place of torch's summary of all ranks, which is no ``Exception``."""
    try:
        yield
    except dcp.api.CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


class _Planner(DefaultLoadPlanner):
    """Refuses a scalar that is anything else."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        try:
            torch.load(value, weights_only=True)
        except pickle.UnpicklingError:
            raise _refused(f"{read_item.dest_index.fqn} is no number") from None
        value.seek(0)
        super().load_bytes(read_item, value)


class _TableReader(pickle.Unpickler):
    """Knows what torch writes into a table of contents, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        is_path = module.partition(".")[0] == "pathlib" and name in ("PosixPath", "WindowsPath")
        if is_dtype or is_path or name in _TABLE.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def _refused(why: str) -> StoreError:
    return StoreError(
        f"the checkpoint is not read: {why}",
        hint="somebody changed it, or another version of torch wrote it: delete the stage's scratch folder, and training starts afresh",
    )

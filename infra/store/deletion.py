"""Listing and deletion of a store's files, for ``dora gc``.

A reader never sees a partially deleted stage. On a local root a folder is renamed first, which is atomic; on a remote one, which has no
rename, its ``result.json`` is deleted first, without which a folder is not a result (``infra/store/store.py``). Between the two steps the
caller's condition is checked once more, and the stage is restored if a run has registered meanwhile that needs it.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs

from dora_core.errors import StoreError
from infra.store.store import RESULT, Store

TRASH = ".gc"
"""Ending of a folder that is being deleted; one that is found was left by a killed process."""


PROBES = "probes"


@dataclass(frozen=True)
class StoredFile:
    """A file of a store: name relative to the listed folder, size, epoch seconds of its last change."""

    name: str
    bytes: int
    modified: float


def files_below(store: Store, relative: str) -> Iterator[StoredFile]:
    """Yield all files below a folder of the store, none if it does not exist. Links are not followed."""
    if store.remote is None:
        yield from _local_files(store.local(relative), "")
        return
    filesystem, root = store.remote
    place = f"{root}/{relative}"
    for info in filesystem.get_file_info(pafs.FileSelector(place, allow_not_found=True, recursive=True)):
        if info.type == pafs.FileType.File:
            yield StoredFile(info.path.removeprefix(f"{place}/"), info.size, info.mtime.timestamp())


def _local_files(folder: Path, prefix: str) -> Iterator[StoredFile]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                try:
                    if entry.is_dir(follow_symlinks=False):
                        yield from _local_files(Path(entry.path), f"{name}/")
                    else:
                        facts = entry.stat(follow_symlinks=False)
                        yield StoredFile(name, facts.st_size, facts.st_mtime)
                except FileNotFoundError:
                    continue  # deleted by a running stage
    except (FileNotFoundError, NotADirectoryError):
        return


def discard(store: Store, folder: str, is_unwanted: Callable[[], bool]) -> bool:
    """Delete a folder of the store, unless it is wanted after all; see the module docstring. Returns whether it was deleted.

    Raises:
        OSError: the store refuses; the remaining files are not a result. StoreError: the folder is a link out of the store.
    """
    if store.remote is not None:
        return _discard_remote(store, folder, is_unwanted)
    path = store.local(folder)
    trash = path.with_name(f".{path.name}{TRASH}")
    if path.name.endswith(TRASH):
        shutil.rmtree(path)
        return True
    path.rename(trash)
    if not is_unwanted() and not path.exists():
        trash.rename(path)
        return False
    shutil.rmtree(trash)
    return True


def _discard_remote(store: Store, folder: str, is_unwanted: Callable[[], bool]) -> bool:
    assert store.remote is not None
    filesystem, root = store.remote
    result = store.read_json(f"{folder}/{RESULT}")
    if result is not None:
        filesystem.delete_file(f"{root}/{folder}/{RESULT}")
    if not is_unwanted():
        if result is not None:
            store.write_json(f"{folder}/{RESULT}", result)
        return False
    filesystem.delete_dir(f"{root}/{folder}")
    return True


def check_listing(store: Store) -> None:
    """Write a small file to a remote store, list it and delete it.

    Raises:
        StoreError: the listing lacks it, so it may also lack the manifest of a run that has just begun.
    """
    if store.remote is None:
        return
    name = f"{uuid.uuid4().hex}.json"
    store.write_json(f"{PROBES}/{name}", {})
    try:
        if name not in store.list(PROBES):
            raise StoreError(
                f"{store.uri} does not list a file that was just written: its listing is out of date, and nothing was deleted",
                hint="run `dora gc` again later; a run that has just begun may be missing from the listing, with the results it needs",
            )
    finally:
        delete_file(store, f"{PROBES}/{name}")
        store.local(f"{PROBES}/{name}").unlink(missing_ok=True)


def delete_file(store: Store, relative: str) -> None:
    """Delete one file, if it exists.

    Raises:
        OSError: the store refuses.
    """
    if store.remote is None:
        store.local(relative).unlink(missing_ok=True)
        return
    filesystem, root = store.remote
    if filesystem.get_file_info(f"{root}/{relative}").type == pafs.FileType.File:
        filesystem.delete_file(f"{root}/{relative}")

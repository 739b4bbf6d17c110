"""Deletion on a local root and on a remote one: complete, or undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from dora_core.errors import StoreError
from infra.store.deletion import TRASH, check_listing, delete_file, discard, files_below
from infra.store.store import Store

DIGEST = "a" * 64
PLACE = f"align/{DIGEST}"


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store with one finished stage; the remote one has a folder in place of a bucket."""
    store = Store(str(tmp_path / "store"))
    if request.param == "remote":
        (tmp_path / "bucket").mkdir()
        store.remote = (pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem()), "prefix")
    folder = store.folder("align", DIGEST)
    (folder.path / "data").mkdir()
    (folder.path / "data" / "table.bin").write_bytes(b"12345")
    store.mark_done(folder, {"stage": "align", "digest": DIGEST, "metrics": {}})
    return store


def names(store: Store, place: str = PLACE) -> dict[str, int]:
    return {file.name: file.bytes for file in files_below(store, place)}


def test_files_are_listed_with_sizes_and_times(store: Store) -> None:
    found = {file.name: file for file in files_below(store, PLACE)}
    assert set(found) == {"data/table.bin", "result.json"} and found["data/table.bin"].bytes == 5
    assert found["result.json"].modified >= found["data/table.bin"].modified > 1e9
    assert names(store, "align/none") == {}


def test_an_unwanted_folder_is_deleted(store: Store) -> None:
    seen = list[bool]()

    def is_unwanted() -> bool:
        seen.append(store.is_done("align", DIGEST))
        return True

    assert discard(store, PLACE, is_unwanted)
    assert seen == [False], "it is not a result any more when the caller is asked again"
    assert names(store) == {} and not store.is_done("align", DIGEST)


def test_a_folder_that_is_wanted_after_all_is_a_result_again(store: Store) -> None:
    before = names(store)
    assert not discard(store, PLACE, lambda: False)
    assert names(store) == before and store.is_done("align", DIGEST)
    assert store.list("align") == [DIGEST]


def test_a_file_is_deleted_once(store: Store) -> None:
    for _ in range(2):
        delete_file(store, f"{PLACE}/data/table.bin")
        assert set(names(store)) == {"result.json"}


@pytest.fixture
def local(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    (store.folder("align", DIGEST).path / "file").write_bytes(b"x")
    return store


def test_a_run_that_computes_the_stage_meanwhile_keeps_its_new_folder(local: Store) -> None:
    """It found no result and began again: the old folder goes, the new one stays."""

    def begins_again() -> bool:
        (local.folder("align", DIGEST).path / "new").write_bytes(b"y")
        return False

    assert discard(local, PLACE, begins_again)
    assert names(local) == {"new": 1} and list(local.local("align").iterdir()) == [local.local(PLACE)]


def test_the_rest_of_a_killed_deletion_is_deleted_without_a_question(local: Store) -> None:
    local.local(PLACE).rename(local.local(f"align/.{DIGEST}{TRASH}"))
    never: Callable[[], bool] = lambda: pytest.fail("a folder that is no result cannot be wanted")  # noqa: E731
    assert discard(local, f"align/.{DIGEST}{TRASH}", never)
    assert list(local.local("align").iterdir()) == []


def test_links_are_neither_followed_nor_deleted_through(local: Store, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"theirs")
    local.local(f"{PLACE}/link").symlink_to(tmp_path / "outside")
    assert set(names(local)) == {"file", "link"}
    with pytest.raises(StoreError, match="leads out of the store"):
        discard(local, f"{PLACE}/link", lambda: True)
    assert discard(local, PLACE, lambda: True)
    assert (tmp_path / "outside" / "file").read_bytes() == b"theirs"


@pytest.mark.fault(27)
def test_a_listing_that_lacks_what_was_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bucket" / "prefix").mkdir(parents=True)
    store = Store(str(tmp_path / "cache"))
    store.remote = (pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem()), "prefix")
    check_listing(store)
    monkeypatch.setattr(store, "list", lambda relative: [])
    with pytest.raises(StoreError, match="does not list a file that was just written"):
        check_listing(store)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

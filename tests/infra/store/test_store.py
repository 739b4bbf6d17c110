"""The store: atomic, checksummed, resumable."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from dora_core.errors import StoreError
from infra.store.store import Store, canonical_json, full_disk, sha256_of, write_atomic

DIGEST = "a" * 64


def finished(store: Store) -> Path:
    folder = store.folder("ingest", DIGEST)
    (folder.path / "data").mkdir(exist_ok=True)
    (folder.path / "data" / "table.bin").write_bytes(b"12345")
    (folder.path / "scratch").mkdir()
    (folder.path / "scratch" / "half.bin").write_bytes(b"x")
    store.mark_done(folder, {"digest": DIGEST, "rows": 1})
    return folder.path


def test_canonical_json_has_one_text_per_value() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert sha256_of({"a": 1, "b": 2}) == sha256_of({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_a_folder_without_a_result_is_not_done(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.folder("ingest", DIGEST)
    assert not store.is_done("ingest", DIGEST)
    with pytest.raises(StoreError, match=r"no result\.json"):
        store.fetch("ingest", DIGEST)


def test_a_finished_stage_lists_its_files_and_not_its_scratch(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    finished(store)
    result = store.read_result("ingest", DIGEST)
    assert list(result["files"]) == ["data/table.bin"]
    assert result["files"]["data/table.bin"]["bytes"] == 5
    assert store.is_done("ingest", DIGEST)


@pytest.mark.fault(14)
def test_a_truncated_file_makes_a_stage_not_done(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (finished(store) / "data" / "table.bin").write_bytes(b"123")
    assert not store.is_done("ingest", DIGEST)
    with pytest.raises(StoreError, match=r"is damaged: data/table\.bin"):
        store.fetch("ingest", DIGEST)


@pytest.mark.fault(14)
def test_other_bytes_of_the_same_size_are_noticed_when_they_are_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    file = finished(store) / "data" / "table.bin"
    assert store.fetch("ingest", DIGEST) == file.parents[1]
    file.write_bytes(b"12346")
    assert store.is_done("ingest", DIGEST), "a plan reads no data"
    with pytest.raises(StoreError, match=r"is damaged: data/table\.bin missing or not what was written") as error:
        store.fetch("ingest", DIGEST)
    assert f"delete {file.parents[1]} and run the same command again" in error.value.hint


@pytest.mark.fault(14)
@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"digest": "a"}', b"\xff\xfe\x00"])
def test_a_damaged_result_is_none(tmp_path: Path, damage: bytes) -> None:
    store = Store(str(tmp_path))
    (finished(store) / "result.json").write_bytes(damage)
    assert store.read_result("ingest", DIGEST) is None and not store.is_done("ingest", DIGEST)


@pytest.mark.fault(13)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: not Linux")
def test_a_full_disk_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", "old")
    (tmp_path / f".file.{os.getpid()}-{threading.get_ident()}.tmp").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"the disk is full: .* while .* was written") as error:
        write_atomic(tmp_path / "file", "new")
    assert "run the same command again" in error.value.hint and error.value.to_json()["type"] == "StoreError"
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


@pytest.mark.fault(13)
def test_a_full_disk_is_recognised_whichever_library_met_it(tmp_path: Path) -> None:
    met = [
        OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x")),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ]
    named = [full_disk(error, tmp_path / "not" / "there") for error in met]
    assert all(isinstance(error, StoreError) for error in named)
    assert [str(error).split(":")[0] for error in named] == ["the disk is full", "the disk quota is used up", *["the disk is full"] * 2]
    assert full_disk(OSError(errno.EACCES, "Permission denied"), tmp_path) is None and full_disk(named[0], tmp_path) is None


@pytest.mark.fault(13)
def test_what_a_killed_process_left_is_gone_once_the_stage_is_done(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    folder = store.folder("ingest", DIGEST)
    for left in (".spec.json.1-2.tmp", "data/.table.bin.1-2.tmp"):
        (folder.path / left).parent.mkdir(exist_ok=True)
        (folder.path / left).write_bytes(b"half")
    finished(store)
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_unwritable_root_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open the artifact store") as error:
        Store(str(tmp_path / "file" / "store"))
    assert "DORA_STORE" in error.value.hint


def test_a_remote_root_is_filled_and_read_through_its_filesystem(tmp_path: Path) -> None:
    """Two machines with a cache each, and a pyarrow filesystem between them (a folder in place of a bucket)."""
    (tmp_path / "bucket" / "prefix").mkdir(parents=True)
    bucket = pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem())

    def on_machine(name: str) -> Store:
        store = Store(str(tmp_path / name))
        store.remote = (bucket, "prefix")
        return store

    writer, reader = on_machine("one"), on_machine("two")
    finished(writer)
    assert (tmp_path / "bucket" / "prefix" / "ingest" / DIGEST / "data" / "table.bin").read_bytes() == b"12345"
    assert reader.is_done("ingest", DIGEST)
    assert (reader.fetch("ingest", DIGEST) / "data" / "table.bin").read_bytes() == b"12345"
    assert reader.list(f"ingest/{DIGEST}") == ["data", "result.json"]

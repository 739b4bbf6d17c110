"""The store: atomic, checksummed, resumable; the journal that speaks while a stage runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from dora_core.errors import StoreError
from infra.journal import JournalReader, JournalWriter
from infra.store import Store, canonical_json, sha256_of

DIGEST = "a" * 64


def finished(store: Store) -> Path:
    folder = store.folder("ingest", DIGEST)
    (folder.path / "data").mkdir()
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


def test_damage_is_noticed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (finished(store) / "data" / "table.bin").write_bytes(b"123")
    assert not store.is_done("ingest", DIGEST)
    with pytest.raises(StoreError, match=r"is damaged: data/table\.bin"):
        store.fetch("ingest", DIGEST)


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


def test_journal_events_are_read_once_and_across_attempts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    folder = store.folder("align", DIGEST)
    reader = JournalReader(store, "align", DIGEST)
    first = JournalWriter(folder)
    first.metrics(0, {"loss": 1.0, "broken": float("nan")})
    first.flush()
    assert [(e["step"], e["values"]) for e in reader.new_events()] == [(0, {"loss": 1.0})]
    second = JournalWriter(folder)  # the stage started again
    second.progress(5, 5, "steps")  # a finished step is flushed at once
    assert [e["kind"] for e in reader.new_events()] == ["progress"]
    assert list(reader.new_events()) == []
    assert all(json.loads(line) for part in (folder.path / "journal").iterdir() for line in part.read_text().splitlines())


def test_a_followed_journal_is_handed_over_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the block runs, and what came after the last look; a store that hiccups costs nothing."""
    monkeypatch.setattr("infra.journal.FOLLOW_SECONDS", 0.01)
    store = Store(str(tmp_path))
    writer, reader = JournalWriter(store.folder("align", DIGEST), flush_seconds=0.0), JournalReader(store, "align", DIGEST)
    hiccups, seen, looked = iter([OSError("away"), OSError("away")]), list[int](), threading.Event()
    look = reader.new_events

    def unsteady() -> Iterator[dict[str, Any]]:
        if error := next(hiccups, None):
            raise error
        return look()

    def on_events(events: list[dict[str, Any]]) -> None:
        seen.extend(event["step"] for event in events)
        if events:
            looked.set()

    monkeypatch.setattr(reader, "new_events", unsteady)
    with pytest.raises(KeyError), reader.following(on_events):
        writer.metrics(1, {"loss": 1.0})
        assert looked.wait(30) and seen == [1]
        writer.metrics(2, {"loss": 0.5})
        raise KeyError("the stage failed")
    assert seen == [1, 2]

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from dora_core.errors import StoreError
from infra.store.journal import JournalPart, JournalReader, JournalWriter, read_part
from infra.store.store import Store

DIGEST = "a" * 64


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


def test_a_followed_journal_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the block runs, and the parts written after the last read; a transient error of the store costs nothing."""
    monkeypatch.setattr("infra.store.journal.FOLLOW_SECONDS", 0.01)
    store = Store(str(tmp_path))
    writer, reader = JournalWriter(store.folder("align", DIGEST), flush_seconds=0.0), JournalReader(store, "align", DIGEST)
    hiccups, seen, looked = iter([OSError("away"), OSError("away")]), list[int](), threading.Event()
    look = reader.new_parts

    def unsteady(*, ended: bool = False) -> Iterator[JournalPart]:
        if error := next(hiccups, None):
            raise error
        return look(ended=ended)

    def on_part(part: JournalPart) -> None:
        seen.extend(event["step"] for event in part.events)
        looked.set()

    monkeypatch.setattr(reader, "new_parts", unsteady)
    with pytest.raises(KeyError), reader.following(on_part):
        writer.metrics(1, {"loss": 1.0})
        assert looked.wait(30) and seen == [1]
        writer.metrics(2, {"loss": 0.5})
        raise KeyError("the stage failed")
    assert seen == [1, 2]


def test_an_error_in_the_middle_of_several_parts_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    writer, reader = JournalWriter(store.folder("align", DIGEST), flush_seconds=0.0), JournalReader(store, "align", DIGEST)
    for step in range(3):
        writer.metrics(step, {"loss": 1.0})
    failures, read = iter([None, OSError("away")]), read_part

    def unsteady(store: Store, name: str) -> JournalPart:
        if error := next(failures, None):
            raise error
        return read(store, name)

    monkeypatch.setattr("infra.store.journal.read_part", unsteady)
    seen = list[int]()
    with pytest.raises(OSError, match="away"):
        seen += (event["step"] for event in reader.new_events())
    seen += [event["step"] for event in reader.new_events()]
    assert seen == [0, 1, 2]


def test_a_part_is_read_by_its_name_also_from_another_machine(tmp_path: Path) -> None:
    """Two machines with a cache each, and a folder in place of a bucket."""
    (tmp_path / "bucket").mkdir()
    bucket = pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem())
    one, two = Store(str(tmp_path / "one")), Store(str(tmp_path / "two"))
    one.remote = two.remote = (bucket, "prefix")
    JournalWriter(one.folder("align", DIGEST), flush_seconds=0.0).metrics(3, {"loss": 0.5})
    [part] = JournalReader(one, "align", DIGEST).new_parts()
    assert part.store == one.uri and part.name.startswith(f"align/{DIGEST}/journal/")
    assert read_part(two, part.name).events == part.events and part.events[0]["values"] == {"loss": 0.5}
    (tmp_path / "bucket" / "prefix" / part.name).unlink()
    assert read_part(two, part.name).events == part.events, "its copy of an immutable part"
    with pytest.raises(FileNotFoundError):
        read_part(two, f"align/{DIGEST}/journal/none.jsonl")
    with pytest.raises(StoreError):
        read_part(two, "../outside.jsonl")


@pytest.mark.fault(27)
def test_parts_that_a_remote_store_does_not_list_yet_are_read_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bucket").mkdir()
    store = Store(str(tmp_path / "cache"))
    store.remote = (pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem()), "")
    writer = JournalWriter(store.folder("align", "0" * 64), flush_seconds=0.0)
    reader, fresh = JournalReader(store, "align", "0" * 64), store.list
    for step in range(4):
        writer.metrics(step, {"loss": float(step)})
    monkeypatch.setattr(store, "list", lambda relative: fresh(relative)[:2])
    assert [event["step"] for part in reader.new_parts() for event in part.events] == [0, 1]
    assert [event["step"] for part in reader.new_parts(ended=True) for event in part.events] == [2, 3]

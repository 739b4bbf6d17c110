"""The memory of checksums: when an entry is used, damage, concurrent writers, and its size."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from dora_core.data import fingerprints
from dora_core.data.fingerprints import SETTLED, FingerprintMemory

DIGEST = "ab" * 32


class Hash:
    """Stands for reading a file: counts its calls and may do something meanwhile."""

    def __init__(self, digest: str = DIGEST, meanwhile=lambda: None):
        self.calls, self.digest, self.meanwhile = 0, digest, meanwhile

    def __call__(self) -> str:
        self.calls += 1
        self.meanwhile()
        return self.digest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("one")
    return path


def later(file: Path, after: int = SETTLED) -> FingerprintMemory:
    """A memory ``after`` nanoseconds after the file's last change."""
    return FingerprintMemory(file.parent / "home" / "memory.json", lambda: file.stat().st_ctime_ns + after)


def test_the_next_process_does_not_hash_a_file_again(file: Path) -> None:
    compute, first = Hash(), later(file)
    assert first.sha256(str(file), compute) == first.sha256(str(file), compute) == DIGEST
    first.save()
    assert later(file).sha256(str(file), compute) == DIGEST and compute.calls == 1


def test_relative_and_absolute_paths_are_one_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, memory = Hash(), later(file)
    monkeypatch.chdir(file.parent)
    memory.sha256(file.name, compute)
    memory.sha256(str(file), compute)
    assert compute.calls == 1


@pytest.mark.parametrize("change", ["content of equal size", "kept time", "size", "replaced"])
def test_any_change_is_noticed(file: Path, change: str) -> None:
    """Even where the time of change is set back: then the time of status change differs."""
    memory, before = later(file), file.stat()
    memory.sha256(str(file), Hash())
    if change == "replaced":
        (file.parent / "new").write_text("two")
        os.utime(file.parent / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(file.parent / "new", file)
    else:
        file.write_text("three" if change == "size" else "two")
    if change == "kept time":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    if change == "content of equal size":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    compute = Hash("cd" * 32)
    assert memory.sha256(str(file), compute) == "cd" * 32 and compute.calls == 1


def test_a_touched_file_is_hashed_again_and_has_the_same_digest(file: Path) -> None:
    memory, compute = later(file), Hash()
    memory.sha256(str(file), compute)
    os.utime(file, ns=(1, 1))
    assert memory.sha256(str(file), compute) == DIGEST and compute.calls == 2


@pytest.mark.parametrize(("age", "calls"), [(0, 2), (SETTLED - 1, 2), (SETTLED, 1), (-SETTLED, 2)])
def test_a_file_changed_a_moment_ago_or_in_the_future_is_not_remembered(file: Path, age: int, calls: int) -> None:
    memory, compute = later(file, age), Hash()
    memory.sha256(str(file), compute)
    memory.sha256(str(file), compute)
    assert compute.calls == calls


def test_an_entry_is_not_believed_while_the_clock_says_the_file_is_young(file: Path) -> None:
    old = later(file)
    old.sha256(str(file), Hash())
    old.save()
    compute = Hash("cd" * 32)
    assert later(file, SETTLED - 1).sha256(str(file), compute) == "cd" * 32


def test_a_file_that_changes_while_it_is_read_is_not_remembered(file: Path) -> None:
    end = file.stat().st_ctime_ns + 100 * SETTLED
    memory = FingerprintMemory(file.parent / "memory.json", lambda: end)
    memory.sha256(str(file), Hash(meanwhile=lambda: file.write_text("more")))
    compute = Hash()
    memory.sha256(str(file), compute)
    assert compute.calls == 1


def test_a_missing_file_raises_the_error_of_reading_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FingerprintMemory().sha256(str(tmp_path / "gone"), lambda: (tmp_path / "gone").read_text())


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"%s": [1, 2]}',
        b'{"%s": [3, "x", 1, 1, "ab"]}',
        b'{"%s": [3, 1, 1, 1, "not a digest"]}',
        b'{"%s": 7}',
    ],
)
def test_a_damaged_memory_is_an_empty_one_and_is_written_anew(file: Path, damage: bytes) -> None:
    memory, compute = file.parent / "home" / "memory.json", Hash()
    memory.parent.mkdir()
    memory.write_bytes(damage.replace(b"%s", str(file).encode()))
    for _ in range(2):
        opened = later(file)
        assert opened.sha256(str(file), compute) == DIGEST
        opened.save()
    assert compute.calls == 1
    assert list(json.loads(memory.read_bytes())) == [str(file)] and os.listdir(memory.parent) == ["memory.json"]


def test_two_writers_keep_both_files(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("two")
    mine, theirs = later(file), later(file, 100 * SETTLED)
    mine.sha256(str(file), Hash())
    theirs.sha256(str(other), Hash())
    mine.save()
    theirs.save()
    compute, memory = Hash(), later(file, 100 * SETTLED)
    memory.sha256(str(file), compute)
    memory.sha256(str(other), compute)
    assert compute.calls == 0


def test_a_reader_never_sees_half_a_memory(file: Path) -> None:
    """Readers during 200 writes always find the entry of the file, or would hash it again."""
    start, done, hashed = later(file), threading.Event(), []
    start.sha256(str(file), Hash())
    start.save()

    def write() -> None:
        for i in range(200):
            memory = later(file)
            memory._new = {f"/other/{i}": ((1, 1, 1, 1), DIGEST), str(file): memory._known[str(file)]}
            memory.save()
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        compute = Hash()
        later(file).sha256(str(file), compute)
        hashed.append(compute.calls)
    thread.join()
    assert hashed and not any(hashed)


def test_the_oldest_entries_are_forgotten(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "MOST", 3)
    paths = [tmp_path / f"{i}.jsonl" for i in range(5)]
    for path in paths:
        path.write_text("x")
        memory = later(file, 100 * SETTLED)
        memory.sha256(str(path), Hash())
        memory.save()
    assert list(json.loads((tmp_path / "home" / "memory.json").read_bytes())) == [str(path) for path in paths[-3:]]


def test_a_memory_that_cannot_be_written_costs_only_time(file: Path) -> None:
    (file.parent / "home").write_text("a file where the folder should be")
    memory, compute = later(file), Hash()
    assert memory.sha256(str(file), compute) == DIGEST
    memory.save()
    assert (file.parent / "home").read_text() == "a file where the folder should be"


def test_nothing_new_writes_nothing(file: Path) -> None:
    memory = later(file)
    memory.save()
    assert not (file.parent / "home").exists()
    memory.sha256(str(file), Hash())
    memory.save()
    written = (file.parent / "home" / "memory.json").stat()
    again = later(file)
    again.sha256(str(file), Hash())
    again.save()
    assert (file.parent / "home" / "memory.json").stat().st_ino == written.st_ino

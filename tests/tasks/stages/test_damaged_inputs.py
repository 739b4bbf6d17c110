"""Files and folders that are not what they should be: refused by name, or every row in them is accounted for. Nothing else is raised."""

from __future__ import annotations

import gzip
import json
import os
import random
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.config.data import DataConfig
from dora_core.data.inputs import Input, fingerprint_sources, open_files
from dora_core.data.problems import Problem, Reason
from dora_core.errors import DataError
from tests.tasks.known_rows import GOOD, ROWS, WHOLE, Outcome, line

CHAOS = pytest.param(2000, marks=pytest.mark.chaos, id="long")

# --------------------------------------------------------------------------------------------------------- damaged files


def as_jsonl(path: Path) -> None:
    path.write_bytes(b"".join(map(line, ROWS)))


def as_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b"".join(map(line, ROWS)), mtime=0))


def as_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=8, write_page_checksum=True)


def as_dataset(path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(path)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Truncated, with bits flipped, a piece repeated, a piece left out, or overwritten."""
    at, size = chance.randrange(len(content)), chance.randrange(1, 64)
    match chance.randrange(5):
        case 0:
            return content[:at]
        case 1:
            flipped = bytearray(content)
            for _ in range(chance.randrange(1, 4)):
                flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            return bytes(flipped)
        case 2:
            return content[:at] + content[max(0, at - size) : at] + content[at:]
        case 3:
            return content[:at] + content[at + size :]
        case _:
            return content[:at] + chance.randbytes(size) + content[at + size :]


@pytest.mark.parametrize("examples", [pytest.param(150, id="quick"), CHAOS])
@pytest.mark.parametrize(("write", "name"), [(as_jsonl, "a.jsonl"), (as_gzip, "a.jsonl.gz"), (as_parquet, "a.parquet")])
def test_a_damaged_file_is_refused_by_name_or_what_is_whole_in_it_arrives(
    write: Callable[[Path], None], name: str, examples: int, tmp_path: Path
) -> None:
    """Lines keep their damage to themselves; gzip and Parquet have checksums, so that no other text is taken for the data's."""
    write(tmp_path / name)
    content, chance, refused = (tmp_path / name).read_bytes(), random.Random(name), 0
    source = DataConfig(train=[{"path": str(tmp_path / name), "source": "m"}]).train[0]
    for _ in range(examples):
        left = damaged(content, chance)
        (tmp_path / name).write_bytes(left)
        try:
            rows = [row for file in open_files(Input(source, "train", "data.train[0]"), {}) for _, row in file.rows(None, 5)]
        except DataError as error:
            assert name in error.message and error.hint
            refused += 1
            continue
        if name == "a.jsonl":
            lines = [text for text in left.split(b"\n") if text.strip()]
            assert len(rows) == len(lines)
            for text, row in zip(lines, rows, strict=True):
                assert text not in WHOLE or row == WHOLE[text]
        else:
            assert len(rows) == GOOD
            # A footer has no checksum, and the names of columns are in it: a column may get a name that nothing reads.
            pairs = zip(rows, ROWS, strict=True)
            assert all(expected[field] == value for row, expected in pairs for field, value in row.items() if field in expected)
    assert refused < examples if name == "a.jsonl" else refused > examples / 2


def test_a_damaged_saved_dataset_is_refused_by_name(tmp_path: Path) -> None:
    as_dataset(tmp_path / "saved")
    files, chance = [file for file in sorted((tmp_path / "saved").iterdir()) if file.is_file()], random.Random(0)
    source = DataConfig(train=[{"path": str(tmp_path / "saved"), "source": "m"}]).train[0]
    for number in range(40):
        file = files[number % len(files)]
        content = file.read_bytes()
        file.write_bytes(damaged(content, chance))
        try:
            for opened in open_files(Input(source, "train", "data.train[0]"), {}):
                list(opened.rows())
        except DataError as error:
            assert "saved" in error.message and error.hint
        finally:
            file.write_bytes(content)


LINES = b"".join(map(line, ROWS))
DISGUISED = {
    "JSON lines as Parquet": ("a.parquet", LINES, "is not a Parquet file: it looks like JSON lines"),
    "nothing as Parquet": ("a.parquet", b"", "cannot read"),
    "beginning and end of Parquet": ("a.parquet", b"PAR1PAR1", "cannot read"),
    "Parquet as JSON lines": ("a.jsonl", b"PAR1" + b"\0" * 40 + b"PAR1", "is not a JSONL file: it looks like a Parquet file"),
    "UTF-16": ("a.jsonl", LINES.decode().encode("utf-16"), "is UTF-16"),
    "UTF-16 without a mark": (
        "a.jsonl",
        "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode("utf-16-le"),
        "none of its first 1000 lines",
    ),
    "a JSON array": ("a.jsonl", json.dumps(ROWS).encode(), "is a JSON array"),
    "packed without saying so": ("a.jsonl", gzip.compress(LINES), "it looks like gzip-compressed data"),
    "not packed": ("a.jsonl.gz", LINES, "cannot read"),
    "half of a packed file": ("a.jsonl.gz", gzip.compress(LINES)[:-9], "cannot read"),
    "half of a frame": ("a.jsonl.zst", pa.compress(LINES, codec="zstd", asbytes=True)[:-9], "cannot read"),
    "packed Parquet": ("a.parquet.gz", gzip.compress(b"PAR1"), "is compressed, and a Parquet file is read only as it is"),
    "no telling name": ("a.txt", LINES, "cannot tell the format"),
    "nothing": ("a.jsonl", b"", "holds no rows"),
    "blank lines": ("a.jsonl", b"\n \r\n\n", "holds no rows"),
}


@pytest.mark.parametrize("kind", DISGUISED)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, kind: str) -> None:
    name, content, words = DISGUISED[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        Outcome(tmp_path / name, tmp_path / "store")
    assert caught.value.hint


def test_json_lines_in_pieces_compressed_one_by_one_arrive_whole(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(gzip.compress(line(row)) for row in ROWS))
    Outcome(tmp_path / "a.jsonl.gz", tmp_path / "store").check(ROWS, bad=0)


# ------------------------------------------------------------------------------------------------------------- columns


def table(**columns: Any) -> pa.Table:
    plain = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    return pa.table(plain | columns)


ODD_BUT_GOOD: dict[str, Callable[[], pa.Table]] = {
    "dictionaries": lambda: table(prompt=pa.array([row["prompt"] for row in ROWS]).dictionary_encode()),
    "large lists": lambda: table(responses=pa.array([row["responses"] for row in ROWS], pa.large_list(pa.large_string()))),
    "lists of one size": lambda: table(responses=pa.array([row["responses"] for row in ROWS], pa.list_(pa.string(), 2))),
    "float16 rewards": lambda: table(rewards=pa.array([row["rewards"] for row in ROWS], pa.list_(pa.float16()))),
    "columns of no concern": lambda: table(
        when=pa.array([2**62] * GOOD, pa.timestamp("ms")), money=pa.array([Decimal("1.5")] * GOOD), nothing=pa.nulls(GOOD)
    ),
}


@pytest.mark.parametrize("name", ODD_BUT_GOOD)
def test_other_ways_to_store_the_same_rows_make_the_same_records(tmp_path: Path, name: str) -> None:
    pq.write_table(ODD_BUT_GOOD[name](), tmp_path / "a.parquet")
    Outcome(tmp_path / "a.parquet", tmp_path / "store").check(ROWS, bad=0)


ODD: dict[str, tuple[dict[str, Any], str, str]] = {  # columns that are no text, numbers or lists
    "binary": ({"prompt": pa.array([b"\xff"] * GOOD)}, "prompt", "wrong_type"),
    "texts that are no numbers": ({"rewards": pa.array([["much", None]] * GOOD)}, "rewards[0]", "not_a_number"),
    "times": ({"prompt": pa.array([1] * GOOD, pa.timestamp("ns"))}, "prompt", "wrong_type"),
    "times beyond the calendar": ({"prompt": pa.array([2**62] * GOOD, pa.timestamp("ms"))}, "prompt", "unparsable"),
    "a time zone nobody knows": ({"prompt": pa.array([1] * GOOD, pa.timestamp("ms", "Nowhere/Town"))}, "prompt", "unparsable"),
    "durations": ({"prompt": pa.array([2**62] * GOOD, pa.duration("ms"))}, "prompt", "unparsable"),
    "maps": ({"responses": pa.array([[("a", "b")]] * GOOD, pa.map_(pa.string(), pa.string()))}, "responses[0]", "wrong_type"),
    "nulls": ({"prompt": pa.nulls(GOOD)}, "prompt", "empty_prompt"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_column_of_another_type_costs_its_rows_and_is_named(tmp_path: Path, kind: str) -> None:
    columns, field, reason = ODD[kind]
    folder = tmp_path / "data"
    folder.mkdir()
    as_parquet(folder / "a.parquet")
    pq.write_table(table(**columns), folder / "b.parquet")
    outcome = Outcome(folder, tmp_path / "store")
    outcome.check(ROWS, bad=GOOD)
    assert (field, reason) in {(entry["field"], entry["reason"]) for entry in outcome.quarantine}
    assert {Path(entry["file"]).name for entry in outcome.quarantine} == {"b.parquet"}


def test_one_value_that_python_cannot_hold_costs_one_row(tmp_path: Path) -> None:
    pq.write_table(table(prompt=pa.array([10**12] * 6 + [2**62] * (GOOD - 6), pa.timestamp("ms"))), tmp_path / "a.parquet")
    source = DataConfig(train=[{"path": str(tmp_path / "a.parquet")}]).train[0]
    (file,) = open_files(Input(source, "train", "data.train[0]"), {})
    rows = [row for _, row in file.rows()]
    assert [isinstance(row, Problem) for row in rows] == [False] * 6 + [True] * (GOOD - 6)
    assert rows[-1] == Problem("prompt", Reason.UNPARSABLE, "no Python value: OverflowError")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    twice = table().append_column("prompt", pa.array(["other"] * GOOD))
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column prompt is there twice"):
        Outcome(tmp_path / "a.parquet", tmp_path / "store")
    pq.write_table(table().append_column("x", pa.array([1] * GOOD)).append_column("x", pa.array([1] * GOOD)), tmp_path / "a.parquet")
    Outcome(tmp_path / "a.parquet", tmp_path / "store").check(ROWS, bad=0)


# ------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_of_many_forms_and_lengths_is_read_whole(tmp_path: Path) -> None:
    """Pairs among lists, an empty shard, a folder named like a file, hidden files and files of no concern."""
    folder = tmp_path / "data"
    (folder / "b.jsonl").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(b"".join(map(line, ROWS[:10])))
    (folder / "b.jsonl" / "part-0.jsonl").write_bytes(b"".join(map(line, ROWS[10:])))
    (folder / "c.jsonl").write_bytes(b"")
    pairs = [
        {"id": f"p{i}", "prompt": f"pair {i}", "chosen": "x", "rejected": "y", "chosen_source": "human", "rejected_source": "m"}
        for i in range(5)
    ]
    (folder / "d.jsonl").write_bytes(b"".join(map(line, pairs)))
    (folder / "README.md").write_text("what this is")
    (folder / ".a.jsonl.swp").write_bytes(b"\0" * 100)
    converted = [
        {k: p[k] for k in ("id", "prompt")} | {"responses": ["x", "y"], "rewards": [1.0, 0.0], "sources": ["human", "m"]} for p in pairs
    ]
    Outcome(folder, tmp_path / "store").check([*ROWS, *converted], bad=0)
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), folder / "e.parquet")
    with pytest.raises(DataError, match=r"holds files of several formats \(jsonl: .*; parquet: e.parquet\)"):
        Outcome(folder, tmp_path / "store")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: (folder / "loop").symlink_to(folder), "loop is a link to a folder that contains it"),
        (lambda folder: [(folder / f"loop{i}").symlink_to("..") for i in range(8)], "is a link to a folder that contains it"),
        (lambda folder: (folder / "b.jsonl").symlink_to("b.jsonl"), "b.jsonl is a broken link"),
        (lambda folder: (folder / "b.parquet").symlink_to("gone.parquet"), "b.parquet is a broken link"),
        (lambda folder: os.mkfifo(folder / "b.jsonl"), "b.jsonl is a broken link or not a regular file"),
    ],
    ids=["loop", "many loops", "itself", "nothing", "pipe"],
)
def test_links_that_lead_nowhere_or_round_and_round_are_refused(tmp_path: Path, make: Callable[[Path], Any], words: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    as_jsonl(folder / "a.jsonl")
    make(folder)
    with pytest.raises(DataError, match=words) as caught:
        Outcome(folder, tmp_path / "store")
    assert caught.value.hint


def test_links_to_files_and_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    as_jsonl(tmp_path / "elsewhere" / "a.jsonl")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    Outcome(tmp_path / "data", tmp_path / "store").check(ROWS, bad=0)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "a" * 300 + ".jsonl", "/proc/self/mem", "/dev/null/a.jsonl"])
def test_a_path_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(DataError) as caught:
        fingerprint_sources(DataConfig(train=[{"path": name}]))
    assert "data.train[0]" in caught.value.message and caught.value.hint


@pytest.mark.parametrize("name", ["a.jsonl", "."])
def test_what_this_user_may_not_read_is_refused(name: str) -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folder is closed to others than its user
        os.chmod(place, 0o755)
        folder = Path(place) / "data"
        folder.mkdir(mode=0o755)
        as_jsonl(folder / "a.jsonl")
        (folder / name).chmod(0)
        user = os.geteuid()
        try:
            if user == 0:  # who may read everything
                os.seteuid(65534)
            with pytest.raises(DataError, match="cannot read") as caught:
                fingerprint_sources(DataConfig(train=[{"path": str(folder)}]))
        finally:
            os.seteuid(user)
            (folder / name).chmod(0o700)
    assert "not permitted" in caught.value.hint

"""Splits of folders and globs: which files are read, and the notes and messages on the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from dora_core.config.data import DataSource
from dora_core.data import locations
from dora_core.data.inputs import fingerprint_inputs, open_files
from dora_core.data.locations import locate
from tests.dora_core.data.written_inputs import ROWS, input_at, read, refused, write_jsonl, write_parquet


def folder(root: Path, **files: int) -> Path:
    """Files with one row each, by their names with ``__`` for ``/`` and without the ending."""
    for name, row in files.items():
        path = root / f"{name.replace('__', '/')}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, [ROWS[row]])
    return root


def ids(path: Path | str | list[str], **options: Any) -> list[str]:
    item = input_at("x", **options)
    item = item._replace(source=item.source.evolve(path=path if isinstance(path, list) else str(path)))
    return [row["id"] for file in open_files(item, {}) for _, row in file.rows()]


def notes(path: Path | str, **options: Any) -> str:
    return " | ".join(note for file in open_files(input_at(path, **options), {}) for note in file.notes)


def test_a_folder_with_splits_gives_train_and_names_the_rest(tmp_path: Path) -> None:
    folder(tmp_path, train=0, test=1, dev=2)
    assert ids(tmp_path) == ["0"] and ids(tmp_path, split="validation+train") == ["2", "0"]
    assert "split train is read; left out: split test (1 file), split validation (1 file)" in notes(tmp_path)
    assert list(fingerprint_inputs([input_at(tmp_path)])) == [f"{tmp_path}/train.jsonl"], "what is not read is not part of the digest"
    error = refused(tmp_path, split="tset")
    assert "no split 'tset', its splits are test, train, validation" in error.message and "did you mean 'test'?" in error.hint


def test_other_splits_alone_need_a_name(tmp_path: Path) -> None:
    folder(tmp_path, train_prefs=0, test_prefs=1)
    error = refused(tmp_path)
    assert "has no split 'train', its splits are test_prefs, train_prefs" in error.message
    assert "e.g. 'train_prefs' for its preferences" in error.hint
    assert ids(tmp_path, split="train_prefs") == ["0"]


def test_a_split_where_there_is_none_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, a=0, b=1)
    assert ids(tmp_path) == ids(tmp_path, split="train") == ["0", "1"] and notes(tmp_path) == ""
    for path in (tmp_path, tmp_path / "a.jsonl", f"{tmp_path}/*.jsonl"):
        error = refused(path, split="test")
        assert "has no splits, so there is no 'test'" in error.message and "leave data.train[0].split out" in error.hint


def test_files_of_no_split_beside_a_split_need_a_decision(tmp_path: Path) -> None:
    folder(tmp_path, train=0, test=1, extra=2)
    error = refused(tmp_path)
    assert "files of the split train (train.jsonl) and files of no split (extra.jsonl)" in error.message
    assert ids(tmp_path, data_files="{train,extra}.jsonl") == ["2", "0"]
    assert ids(tmp_path, split="test") == ["1"] and "files of no split (extra.jsonl)" in notes(tmp_path, split="test")
    folder(tmp_path / "hub", **{"data__train-00000-of-00001": 3, "more__x": 4})
    assert ids(tmp_path / "hub") == ["3"] and "files of no split (more/x.jsonl)" in notes(tmp_path / "hub")


def test_a_file_or_glob_of_one_split_is_read_as_it_is_named(tmp_path: Path) -> None:
    folder(tmp_path, test=0, train=1, **{"test-1": 2})
    assert ids(tmp_path / "test.jsonl") == ids(tmp_path / "test.jsonl", split="test") == ["0"]
    assert ids(f"{tmp_path}/test*.jsonl") == ids(f"{tmp_path}/test*.jsonl", split="test") == ["2", "0"]
    assert ids(f"{tmp_path}/te?t.jsonl") == ["0"]
    assert "is the split test by its name, so there is no 'dev'" in refused(tmp_path / "test.jsonl", split="dev").message
    assert ids([f"{tmp_path}/test.jsonl", f"{tmp_path}/train.jsonl"]) == ["0", "1"]


def test_lists_and_globs_keep_their_order_and_read_a_file_once(tmp_path: Path) -> None:
    folder(tmp_path, b=0, a=1, sub__c=2)
    assert ids([f"{tmp_path}/b.jsonl", f"{tmp_path}/[ab].jsonl", f"{tmp_path}/**/c.jsonl"]) == ["0", "1", "2"]
    at = locate(DataSource(path=[f"{tmp_path}/b.jsonl", f"{tmp_path}/*.jsonl"]), "data.train[0]")
    assert "is named more than once and read once" in " ".join(note for one in at for note in one.notes)
    assert ids(f"{tmp_path}/{{a,sub/c}}.jsonl") == ["1", "2"]
    assert "no file matches" in refused(f"{tmp_path}/*.csv").message
    assert ids(f"file://{tmp_path}/[ab].jsonl") == ["1", "0"]


def test_globs_of_a_remote_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that is not the local one; only its address is a stand-in."""
    folder(tmp_path, b=0, a=1, sub__c=2, sub__deep__d=3)
    remote = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr(locations, "_filesystem", lambda path, place: (remote, path.removeprefix("s3://")))
    assert ids("s3://*.jsonl") == ["1", "0"] and ids("s3://sub/**/*.jsonl") == ["2", "3"] and ids("s3://sub") == ["2", "3"]
    assert ids("s3://{b,sub/c}.jsonl") == ["0", "2"] and ids("s3://su[b]") == ["2", "3"]
    assert "no file matches" in refused("s3://none/*.jsonl").message
    assert list(fingerprint_inputs([input_at("s3://s*/c.jsonl")])) == ["s3://sub/c.jsonl"]


def test_slices_count_over_all_files_of_a_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train-1.jsonl", ROWS[:3])
    write_parquet(tmp_path / "x.parquet", ROWS)
    write_jsonl(tmp_path / "train-2.jsonl", ROWS[3:])
    glob = f"{tmp_path}/train-*.jsonl"
    assert ids(glob, split="train[1:4]") == ["1", "2", "3"]
    assert ids(glob, split="train[:40%]") == ["0", "1"] and ids(glob, split="train[-2:]") == ["3", "4"]
    assert ids(glob, split="train[4:]+train[:1]") == ["4", "0"] and ids(glob, split="train[9:]") == []
    assert ids(tmp_path / "x.parquet", split="train[:2]") == ["0", "1"]


CARD = "---\nconfigs:\n- {config_name: default, data_files: [{split: train, path: one.jsonl}, {split: test, path: 'two/*'}]}\n---\n"


def test_the_card_of_a_hub_folder_decides(tmp_path: Path) -> None:
    folder(tmp_path, one=0, two__a=1, other=2)
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert ids(tmp_path) == ["0"] and ids(tmp_path, split="test") == ["1"]
    assert "declares no subset 'en'" in refused(tmp_path, subset="en").message
    (tmp_path / "README.md").write_text(CARD.replace("one.jsonl", "none.jsonl"))
    assert "README.md: data_files of train: no data file" in refused(tmp_path).message


def test_a_subset_that_is_a_folder_has_the_splits_of_its_names(tmp_path: Path) -> None:
    folder(tmp_path, en__train=0, en__test=1, de__train=2)
    (tmp_path / "README.md").write_text("---\nconfigs:\n- {config_name: en, data_dir: en}\n- {config_name: de, data_dir: de/}\n---\n")
    assert ids(tmp_path, subset="en") == ["0"] and ids(tmp_path, subset="de") == ["2"]
    assert ids(tmp_path, subset="en", split="test") == ["1"]
    assert "set data.train[0].subset: en or de" in refused(tmp_path).hint


def test_options_choose_below_a_folder_and_are_refused_elsewhere(tmp_path: Path) -> None:
    folder(tmp_path, en__a=0, de__a=1)
    assert ids(tmp_path, data_dir="de") == ["1"] and ids(tmp_path, data_files={"train": "en/*", "test": "de/*"}) == ["0"]
    assert ids(tmp_path, data_files={"train": "en/*", "test": ["de/*"]}, split="test") == ["1"]
    assert "there is no folder" in refused(tmp_path, data_dir="fr").message
    assert "no data file of" in refused(tmp_path, data_files="fr/*").message
    assert "declares no subsets" in refused(tmp_path, subset="en").message
    file = tmp_path / "en" / "a.jsonl"
    for option in ({"subset": "en"}, {"data_dir": "en"}, {"data_files": "a"}, {"query": "SELECT 1"}):
        error = refused(file, **option)
        assert f"data.train[0].{next(iter(option))}" in error.message and "leave" in error.hint


def test_hive_partitions_are_text_columns_and_part_of_the_fingerprint(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", **{"source=human__year=2024__a": 0, "source=a%20b__year=x__a": 1})
    (root / "source=a%20b" / "year=x").rename(root / "source=a%20b" / "year=__HIVE_DEFAULT_PARTITION__")
    found = [(row["source"], row["year"], row["id"]) for file in open_files(input_at(root), {}) for _, row in file.rows()]
    assert found == [("a b", None, "1"), ("human", "2024", "0")]
    ((_, row),) = read(root / "source=human" / "year=2024" / "a.jsonl")
    assert row["year"] == "2024"
    before = fingerprint_inputs([input_at(root)])
    (root / "source=human").rename(root / "source=model")
    after = fingerprint_inputs([input_at(root)])
    assert set(before.values()) != set(after.values()) and len(set(before.values()) & set(after.values())) == 1


@pytest.mark.parametrize(
    "name", ["README.md", "LICENSE.json", "dataset_infos.json", "state.jsonl.md", "_hidden.jsonl", ".a.jsonl", "sub/dataset_info.json"]
)
def test_metadata_is_never_data(tmp_path: Path, name: str) -> None:
    folder(tmp_path, a=0)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    assert ids(tmp_path) == ["0"]


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    folder(tmp_path, a=0)
    (tmp_path / "image.png").touch()
    assert "left out: image.png" in notes(tmp_path)

"""Locations of inputs: files, folders, URIs and dataset names, and the messages where nothing usable is."""

from __future__ import annotations

from pathlib import Path

import pytest

from dora_core.config.data import DataConfig, DataSource
from dora_core.data.inputs import fingerprint_sources
from dora_core.data.locations import locate
from dora_core.errors import DataError
from tests.dora_core.data.written_inputs import ROWS, read, refused, write_jsonl, write_parquet

FILES = "arrow or csv or json or jsonl or parquet or sqlite"


def test_missing_file_names_the_place_and_its_neighbours(tmp_path: Path) -> None:
    write_parquet(tmp_path / "mixture.parquet", ROWS)
    data = DataConfig(train=[{"path": str(tmp_path / "mixtur.parquet")}])
    with pytest.raises(DataError, match=r"data\.train\[0\]\.path: there is no file") as caught:
        fingerprint_sources(data)
    assert f"did you mean '{tmp_path / 'mixture.parquet'}'" in caught.value.hint


def test_relative_path_in_an_existing_folder_is_not_taken_for_a_dataset_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert "there is no file or folder 'data/mixture'" in refused("data/mixture").message


def test_file_uri_is_read_like_a_path(tmp_path: Path) -> None:
    assert len(read(write_parquet(tmp_path / "a.parquet", ROWS).as_uri())) == 5


def test_empty_folder_and_unknown_scheme(tmp_path: Path) -> None:
    assert "holds no arrow or csv or json or jsonl or parquet or sqlite file" in refused(tmp_path).message
    assert "cannot open" in refused("nowhere://bucket/key").message
    assert "holds credentials" in refused("s3://key:secret@bucket/data.parquet").message


def test_an_explicit_format_wins_over_the_ending_and_must_fit_what_is_there(tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "rows.txt", ROWS)
    assert [row["id"] for _, row in read(lines, format="jsonl")] == ["0", "1", "2", "3", "4"]
    wrong = refused(lines, format="datasets")
    assert "a saved `datasets` directory is needed, not the file" in wrong.message and wrong.hint == f"set format: {FILES}"
    folder = refused(tmp_path, format="datasets")
    assert "is not a saved `datasets` directory" in folder.message and folder.hint == f"set format: auto, {FILES}"
    assert "there is no file or folder 'owner/name'" in refused("owner/name", format="parquet").message


def test_locations_hold_the_files_whose_bytes_count(tmp_path: Path) -> None:
    """A folder of files is read file by file, a saved dataset as a whole, and a dataset name has no file."""
    write_jsonl(tmp_path / "b.jsonl.gz", ROWS)
    write_jsonl(tmp_path / "a.JSON", ROWS)
    (tmp_path / "notes.md").write_text("read by no format")
    each = locate(DataSource(path=f"{tmp_path}/"), "data.train[0]")
    assert [(at.format.name, at.name, len(at.files)) for at in each] == [
        ("json", f"{tmp_path}/a.JSON", 1),
        ("jsonl", f"{tmp_path}/b.jsonl.gz", 1),
    ]
    (tmp_path / "state.json").write_text("{}")
    (whole,) = locate(DataSource(path=str(tmp_path), split="test"), "data.train[0]")
    assert (whole.format.name, whole.name, whole.split) == ("datasets", str(tmp_path), "test")
    assert [file.uri for file in whole.files] == [f"{tmp_path}/{name}" for name in ("a.JSON", "b.jsonl.gz", "notes.md", "state.json")]
    assert [at.format.name for at in locate(DataSource(path=str(tmp_path), format="jsonl"), "data.train[0]")] == ["json", "jsonl"]
    (name,) = locate(DataSource(path="owner/name", revision="a" * 40), "data.train[0]")
    assert (name.name, name.files, name.revision) == (f"hf://datasets/owner/name@{'a' * 40}", (), "a" * 40)

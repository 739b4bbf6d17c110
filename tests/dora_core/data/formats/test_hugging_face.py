"""Saved ``datasets`` directories and dataset names; no test needs a network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dora_core.config.data import DataConfig
from dora_core.data.inputs import changed_sources, fingerprint_sources, inputs_of, open_files
from dora_core.data.row_views import count_rows
from dora_core.errors import DataError
from tests.dora_core.data.written_inputs import ROWS, input_at, read, refused, write_jsonl

COMMIT = "a" * 40


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits on disk."""
    import datasets

    folder = tmp_path_factory.mktemp("datasets") / "saved"
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}).save_to_disk(folder)
    return folder


def test_a_saved_dataset_gives_the_rows_of_its_split(saved: Path) -> None:
    assert read(saved) == read(saved, format="datasets") == list(enumerate(ROWS))
    assert read(saved, split="test") == [(0, ROWS[0])]
    assert "no split 'tset'" in refused(saved, split="tset").message


def test_slices_sums_and_what_is_left_out(saved: Path) -> None:
    assert [row["id"] for _, row in read(saved, split="train[1:3]")] == ["1", "2"]
    assert [row["id"] for _, row in read(saved, split="test+train[-1:]")] == ["0", "4"]
    (file,) = open_files(input_at(saved), {})
    assert file.notes == (f"{saved}: split train; left out: test (1 rows)",) and str(file.types["rewards"]) == "list<item: double>"
    assert list(file.rows()) == list(enumerate(ROWS)) and count_rows(file.reader) == 5


def test_a_single_split_is_no_other_split(saved: Path, tmp_path: Path) -> None:
    import datasets

    assert len(read(saved / "train")) == 5
    assert "has no splits, so there is no 'dev'" in refused(saved / "test", split="dev").message
    assert read(saved / "test", split="test") == [(0, ROWS[0])]
    datasets.Dataset.from_list(ROWS, split="test").save_to_disk(tmp_path / "named")
    assert "is the split test, so there is no 'dev'" in refused(tmp_path / "named", split="dev").message
    assert len(read(tmp_path / "named", split="test")) == len(read(tmp_path / "named")) == 5
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "plain")
    assert "has no splits, so there is no 'dev'" in refused(tmp_path / "plain", split="dev").message
    assert "has no `subset`" in refused(saved, subset="en").message


def test_splits_of_other_names_are_listed(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train_prefs": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    error = refused(tmp_path / "saved")
    assert "has no split 'train'; name one in data.train[0].split" in error.message and "train_prefs" in error.hint


def hub_folder(root: Path) -> str:
    """A dataset repository with two subsets, as the library reads it from a folder."""
    for subset, row in (("en", 0), ("de", 1)):
        (root / subset).mkdir(parents=True)
        write_jsonl(root / subset / "train.jsonl", [ROWS[row]])
        write_jsonl(root / subset / "test.jsonl", [ROWS[row + 2]])
    configs = "".join(f"- {{config_name: {s}, data_dir: {s}}}\n" for s in ("en", "de"))
    (root / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return str(root)


def test_subset_split_and_files_of_a_name_are_those_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself loads a folder in place of the name; only the hub is a stand-in."""
    import datasets

    real, root = datasets.load_dataset, hub_folder(tmp_path / "hub")
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, revision, **options: real(root, cache_dir=str(tmp_path / "cache"), **options)
    )

    def ids(**options: Any) -> list[str]:
        return [row["id"] for _, row in read("owner/name", revision=COMMIT, **options)]

    assert ids(subset="en") == ["0"] and ids(subset="de", split="test") == ["3"]
    assert ids(data_files={"train": "de/train.jsonl"}) == ["1"]
    for options, message in (({}, "has several subsets"), ({"subset": "fr"}, "has no subset 'fr'")):
        error = refused("owner/name", revision=COMMIT, **options)
        assert error.message == f"data.train[0].subset: dataset 'owner/name' {message}"
        assert "set data.train[0].subset" in error.hint and "allowed: de, en" in error.hint and "network" not in error.hint
    (tmp_path / "hub" / "README.md").unlink()
    assert ids(data_dir="en", split="train+test") == ["0", "2"]


def test_a_damaged_folder_is_refused_with_the_remedy(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text("{")
    error = refused(tmp_path)
    assert f"data.train[0].path: dataset '{tmp_path}' cannot be loaded" in error.message and "save it again" in error.hint


def test_dataset_name_offline_is_a_clear_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="'owner/preferences' is not a local path") as caught:
        fingerprint_sources(DataConfig(train=[{"path": "owner/preferences"}]))
    assert "data.train[0].revision" in caught.value.hint


def test_pinned_dataset_name_needs_no_network_to_plan() -> None:
    data = DataConfig(train=[{"path": "owner/preferences", "revision": COMMIT}])
    fingerprints = fingerprint_sources(data)
    assert fingerprints == {f"hf://datasets/owner/preferences@{COMMIT}": COMMIT}
    assert changed_sources(data, fingerprints) == []


def test_a_name_is_read_at_the_commit_of_its_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub and its datasets stand-ins: a branch that moves after the plan changes nothing."""
    import datasets
    import huggingface_hub

    asked: list[tuple[str, str]] = []

    def load(path: str, revision: str) -> Any:
        asked.append((path, revision))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(dataset_info=lambda name, timeout: SimpleNamespace(sha=COMMIT)))
    monkeypatch.setattr(datasets, "load_dataset", load)
    data = DataConfig(train=[{"path": "owner/preferences"}])
    fingerprints = fingerprint_sources(data)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("the hub was asked again"))
    (file,) = open_files(inputs_of(data)[0], fingerprints)
    assert [row for _, row in file.rows()] == ROWS and file.name == "hf://datasets/owner/preferences"
    assert asked == [("owner/preferences", COMMIT)]


def test_a_commit_that_cannot_be_loaded_names_name_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(path: str, revision: str) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    error = refused("owner/preferences", revision=COMMIT)
    assert error.message == f"data.train[0].path: dataset 'owner/preferences' at {COMMIT[:12]} cannot be loaded: ConnectionError: no route"
    assert "local Hugging Face cache" in error.hint

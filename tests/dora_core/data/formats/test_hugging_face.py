"""Saved ``datasets`` directories and dataset names; no test needs a network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dora_core.config.data import DataConfig
from dora_core.data.inputs import changed_sources, fingerprint_sources, inputs_of, open_input
from dora_core.errors import DataError
from tests.dora_core.data.written_inputs import ROWS, read, refused

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
    (file,) = open_input(inputs_of(data)[0], fingerprints)
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

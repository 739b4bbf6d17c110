"""Pinning a model name to its weights: no cached result survives a change of the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dora_core.config.method import ModelConfig
from dora_core.errors import ModelError
from dora_core.models.pinning import pin


def test_a_folder_is_pinned_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    before = pin(ModelConfig(source=str(tmp_path))).content
    assert before == pin(ModelConfig(source=str(tmp_path))).content
    (tmp_path / "model.safetensors").write_bytes(b"1235")
    assert pin(ModelConfig(source=str(tmp_path))).content != before


def test_tiny_and_pinned_ids_stay_as_they_are() -> None:
    for model in (ModelConfig(), ModelConfig(source="org/model", revision="a" * 40)):
        assert pin(model) == model


def test_an_id_in_the_local_cache_gets_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    commit, cache = "b" * 40, tmp_path / "models--org--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    (cache / "snapshots" / commit).mkdir(parents=True)
    (cache / "snapshots" / commit / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pin(ModelConfig(source="org/model")).revision == commit
    with pytest.raises(ModelError, match="neither a folder nor an id") as error:
        pin(ModelConfig(source="org/other"))
    assert "tiny" in error.value.hint


def test_an_adapter_is_pinned_with_its_base(tmp_path: Path) -> None:
    """What an adapter computes changes with its base: a local one by content, one of the hub by its commit."""
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"one")
    about = tmp_path / "adapter" / "adapter_config.json"
    about.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}))
    adapter = ModelConfig(source=str(tmp_path / "adapter"))
    first = pin(adapter)
    assert first == pin(adapter) and first.base_revision is None
    (tmp_path / "base" / "model.safetensors").write_bytes(b"two")
    assert pin(adapter).content != first.content
    about.write_text(json.dumps({"base_model_name_or_path": "org/base", "revision": "b" * 40}))
    assert pin(adapter).base_revision == "b" * 40
    assert "base_revision" not in ModelConfig().model_dump(), "digests of other models are those of before"

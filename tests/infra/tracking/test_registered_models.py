"""Names of registered models, and their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from dora_core.errors import ConfigError
from infra.store.store import Store
from infra.tracking import model_registry as registry
from infra.tracking.registered_models import files, find, is_registered_name

DIGEST = "a" * 64


@pytest.fixture
def uri(mlflow_sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A registry with three versions of `demo`; the first is the champion, and lies in this process's store."""
    monkeypatch.delenv("DORA_STORE", raising=False)
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))
    store = Store(str(tmp_path / "home" / "store"))
    folder = store.folder("align", DIGEST)
    (folder.path / "model").mkdir()
    (folder.path / "model" / "config.json").write_text("{}")
    facts = {"spec": {}, "inputs": {}, "rows": 1, "metrics": {}, "facts": {}, "seconds": 1.0}
    store.mark_done(folder, {"stage": "align", "digest": DIGEST} | facts)  # type: ignore[typeddict-item]
    registry.register(mlflow_sqlite, "demo", f"{tmp_path}/elsewhere/store/align/{DIGEST}/model")
    for bucket in ("two", "three"):
        registry.register(mlflow_sqlite, "demo", f"s3://{bucket}/align/{DIGEST}/model")
    registry.promote(mlflow_sqlite, "demo", "1")
    registry.challenge(mlflow_sqlite, "demo", "3")
    return mlflow_sqlite


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("demo", "1"),
        ("demo@champion", "1"),
        ("demo@challenger", "3"),
        ("demo:2", "2"),
        ("models:/demo@champion", "1"),
        ("models:/demo/2", "2"),
    ],
)
def test_every_form_of_a_name(uri: str, name: str, version: str) -> None:
    assert find(uri, name).version == version
    assert is_registered_name(name) == name.startswith("models:/")


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("dmo", "no model 'dmo'", "did you mean 'demo'"),
        ("demo@previous", "no version under the alias 'previous'", "@challenger (version 3), @champion (version 1), :1, :2, :3"),
        ("demo:9", "no version 9", ":3"),
    ],
)
def test_what_there_is_is_said(uri: str, name: str, message: str, hint: str) -> None:
    with pytest.raises(registry.RegistryError, match=message) as refusal:
        find(uri, name)
    assert all(part in str(refusal.value.hint) for part in hint.split(", "))


def test_a_text_of_another_form_is_refused_with_the_forms(uri: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        find(uri, "demo@champion@twice")
    assert "NAME@ALIAS" in str(refusal.value.hint)


def test_files_are_those_of_the_store_of_now(uri: str, tmp_path: Path) -> None:
    assert files(uri, find(uri, "demo")) == tmp_path / "home" / "store" / "align" / DIGEST / "model"


def test_files_that_are_nowhere_are_an_error(mlflow_sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))
    registry.register(mlflow_sqlite, "gone", f"{tmp_path}/gone/store/align/{DIGEST}/model")
    with pytest.raises(registry.RegistryError, match="cannot be read") as refusal:
        files(mlflow_sqlite, find(mlflow_sqlite, "gone:1"))
    assert "DORA_STORE" in str(refusal.value.hint)


def test_a_version_without_a_store_is_downloaded_from_its_own_registry(
    mlflow_sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra.tracking.mlflow_client import mlflow_client

    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    client = mlflow_client(mlflow_sqlite)
    client.create_registered_model("other")
    client.create_model_version("other", str(tmp_path / "theirs"))
    folder = files(mlflow_sqlite, find(mlflow_sqlite, "other:1"))
    assert (folder / "config.json").read_text() == "{}" and folder == tmp_path / "home" / "models" / "other" / "1"
    assert files(mlflow_sqlite, find(mlflow_sqlite, "other:1")) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["1"] and list((tmp_path / "cwd").iterdir()) == []

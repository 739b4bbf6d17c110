"""Models of the store as MLflow downloads them: found after a move, and never silently empty."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from infra.store.store import Store
from infra.tracking.mlflow_client import mlflow_client
from infra.tracking.model_registry import promote, register
from infra.tracking.store_artifacts import place_in_store, travelling

DIGEST = "a" * 64


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one trained model, and the environment of a process elsewhere: it knows the registry's address alone."""
    for name in ("DORA_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "elsewhere"))
    store = Store(str(tmp_path / "home" / "store"))
    folder = store.folder("align", DIGEST)
    (folder.path / "model").mkdir()
    (folder.path / "model" / "model.safetensors").write_bytes(bytes(range(256)))
    (folder.path / "model" / "config.json").write_text("{}")
    facts = {"spec": {}, "inputs": {}, "rows": 1, "metrics": {}, "facts": {}, "seconds": 1.0}
    store.mark_done(folder, {"stage": "align", "digest": DIGEST} | facts)  # type: ignore[typeddict-item]
    return tmp_path / "home"


def model_of(home: Path) -> str:
    return f"{home}/store/align/{DIGEST}/model"


def download(uri: str, to: Path) -> Path:
    from mlflow import set_registry_uri, set_tracking_uri
    from mlflow.artifacts import download_artifacts

    set_tracking_uri(uri), set_registry_uri(uri)
    to.mkdir()
    return Path(download_artifacts(artifact_uri="models:/policy@champion", dst_path=str(to)))


def test_a_model_is_downloaded_after_its_home_was_moved(home: Path, tmp_path: Path, mlflow_sqlite: str) -> None:
    shutil.copy(mlflow_sqlite.removeprefix("sqlite:///"), home / "mlflow.db")
    promote(f"sqlite:///{home}/mlflow.db", "policy", register(f"sqlite:///{home}/mlflow.db", "policy", model_of(home)))
    moved = home.rename(tmp_path / "moved")
    uri = f"sqlite:///{moved}/mlflow.db"
    assert (download(uri, tmp_path / "out") / "model.safetensors").read_bytes() == bytes(range(256))
    assert register(uri, "policy", model_of(moved)) == "1", "the same files keep their version"
    assert not home.exists()


@pytest.mark.parametrize("harm", ["gone", "truncated", "altered"])
def test_a_model_that_is_not_whole_is_an_error_not_an_empty_folder(home: Path, tmp_path: Path, mlflow_sqlite: str, harm: str) -> None:
    from mlflow.exceptions import MlflowException

    promote(mlflow_sqlite, "policy", register(mlflow_sqlite, "policy", model_of(home)))
    weights = Path(model_of(home)) / "model.safetensors"
    if harm == "gone":
        shutil.rmtree(home)
    else:
        weights.write_bytes(bytes(100) if harm == "truncated" else bytes(256))
    with pytest.raises(MlflowException, match="DORA_STORE or DORA_HOME" if harm == "gone" else "model.safetensors missing or not what was"):
        download(mlflow_sqlite, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_source_names_the_place_in_the_store(mlflow_sqlite: str, home: Path) -> None:
    source = travelling("/data/a b?/store/align/" + DIGEST + "/model")
    assert source == f"dora-store:/align/{DIGEST}/model?root=/data/a%20b%3F/store"
    assert place_in_store(source) == f"align/{DIGEST}/model"
    version = register(mlflow_sqlite, "policy", model_of(home))
    assert mlflow_client(mlflow_sqlite).get_model_version("policy", version).source == travelling(model_of(home))

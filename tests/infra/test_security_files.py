"""No name leads out of the store, and no loaded file can run code."""

from __future__ import annotations

import ast
import json
import os
import pickle
import stat
from pathlib import Path

import pyarrow.fs as pafs
import pytest

import dora_core
import flows
import infra
import tasks
from dora_core.config.method import ModelConfig
from dora_core.errors import ModelError, StoreError
from dora_core.models.loading import load_policy
from infra.settings import Settings, apply_environment
from infra.store.store import Store

DIGEST = "a" * 64
PACKAGES = (dora_core, infra, tasks, flows)


# --------------------------------------------------------------------------------------------------------------- paths


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file beside the store, ``secret.json``, and a link to its folder inside the store."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.json").write_text('{"secret": 1}')
    Store(str(tmp_path / "store"))
    (tmp_path / "store" / "link").symlink_to(tmp_path / "outside")
    return tmp_path / "outside"


@pytest.mark.parametrize(
    "name", ["../outside/secret.json", "ingest/../../outside/secret.json", "{outside}/secret.json", "link/secret.json"]
)
def test_no_name_leads_out_of_the_store(tmp_path: Path, outside: Path, name: str) -> None:
    store, name = Store(str(tmp_path / "store")), name.format(outside=outside)
    for use in (store.read_json, store.download, store.list, lambda n: store.write_json(n, {}), lambda n: store.folder(n, DIGEST)):
        with pytest.raises(StoreError, match="leads out of the store"):
            use(name)
    assert (outside / "secret.json").read_text() == '{"secret": 1}' and list(outside.iterdir()) == [outside / "secret.json"]


def test_a_planted_result_cannot_write_outside_the_cache(tmp_path: Path) -> None:
    """A shared bucket: its writers must not be able to write on the machines that read from it."""
    bucket = tmp_path / "bucket"
    (bucket / "prefix" / "ingest" / DIGEST).mkdir(parents=True)
    (bucket / "planted").write_text("x")
    files = {"../../../../planted": {"bytes": 1, "sha256": ""}}
    (bucket / "prefix" / "ingest" / DIGEST / "result.json").write_text(json.dumps({"digest": DIGEST, "files": files}))
    store = Store(str(tmp_path / "cache" / "store"))
    store.remote = (pafs.SubTreeFileSystem(str(bucket), pafs.LocalFileSystem()), "prefix")
    with pytest.raises(StoreError, match="leads out of the store"):
        store.fetch("ingest", DIGEST)
    assert not list(tmp_path.glob("cache/**/planted"))


def test_the_cache_of_a_remote_store_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_CACHE", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # set, but never requested
    cache = tmp_path / f"dora-cache-{os.getuid()}"
    cache.mkdir(mode=0o755)
    Store("s3://bucket/prefix")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    for child in cache.iterdir():
        child.rmdir()
    cache.rmdir()
    (tmp_path / "theirs").mkdir()
    cache.symlink_to(tmp_path / "theirs")  # the temporary folder is shared: another user was first
    with pytest.raises(StoreError, match="belongs to another user; set DORA_CACHE"):
        Store("s3://bucket/prefix")
    assert list((tmp_path / "theirs").iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- loading


class Planted:
    """Runs when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


def test_weights_in_a_pickle_are_refused_unopened(tmp_path: Path) -> None:
    folder, trace = tmp_path / "model", tmp_path / "trace"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 8, "architectures": ["LlamaForCausalLM"]}))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(trace)))
    with pytest.raises(ModelError):
        load_policy(ModelConfig(source=str(folder)))
    assert not trace.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())  # it would have run
    assert trace.exists()


def test_mlflow_unpickles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION

    monkeypatch.delenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", raising=False)
    assert MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get()  # MLflow's own default
    apply_environment(Settings(home=tmp_path))
    assert not MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get()


def calls() -> list[tuple[str, str, ast.Call]]:
    """List (file:line, called name, call) of every call in the packages."""
    found = []
    for package in PACKAGES:
        for path in Path(package.__path__[0]).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    found.append((f"{path.name}:{node.lineno}", ast.unparse(node.func), node))
    return found


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


def test_the_packages_call_no_loader_that_runs_code() -> None:
    """Loaders of pickles or of objects named in a file; shells; and models without ``use_safetensors``."""
    forbidden = {"pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load", "yaml.load", "yaml.unsafe_load"}
    forbidden |= {"eval", "exec", "os.system", "marshal.loads", "shelve.open"}
    seen = calls()
    called = [place for place, name, _ in seen if name in forbidden]
    assert [place.partition(":")[0] for place in called] == ["plugins.py"]  # a user's own loss, which the configuration names
    assert [place for place, name, call in seen if name == "torch.load" and keyword(call, "weights_only") != "True"] == []
    assert [place for place, _, call in seen if keyword(call, "shell") == "True"] == []
    models = [(place, call) for place, name, call in seen if name.endswith(".from_pretrained") and name.startswith("AutoModel")]
    assert models and [place for place, call in models if keyword(call, "use_safetensors") != "True"] == []
    assert [place for place, _, call in seen if keyword(call, "trust_remote_code") == "True"] == []

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from dora_core.errors import ServiceError
from infra.tracking import model_registry as registry
from infra.tracking.mlflow_client import mlflow_client
from infra.tracking.model_registry import RegistryError, RegistryMoved, aliases, challenge, history, promote, register, reject, rollback
from infra.tracking.store_artifacts import travelling


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "store/align/abc/model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "config.json").write_text("{}")
    return folder


def download(monkeypatch: pytest.MonkeyPatch, uri: str, model_uri: str) -> Path:
    """Load it as a model server does: by alias, with the address in the environment."""
    from mlflow.artifacts import download_artifacts

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return Path(download_artifacts(artifact_uri=model_uri))


def the_life_of_a_model(uri: str, name: str) -> None:
    """register, promote, promote, roll back; each alias step checked."""
    sources = [f"s3://bucket/{name}/{n}" for n in "abc"]
    one, two, three = (register(uri, name, source, tags={"dora.digest": source[-1]}) for source in sources)
    assert (one, two, three) == ("1", "2", "3")
    assert register(uri, name, sources[1]) == "2"  # the same files keep their version
    challenge(uri, name, one)
    assert aliases(uri, name) == {"challenger": "1"}
    promote(uri, name, one, why="gate passed")
    assert aliases(uri, name) == {"champion": "1"}
    promote(uri, name, two)
    promote(uri, name, two)  # again: no change, previous stays 1
    challenge(uri, name, two)  # the champion is not a challenger any more
    assert aliases(uri, name) == {"champion": "2", "previous": "1"}
    assert rollback(uri, name, why="worse answers") == "1"
    assert aliases(uri, name) == {"champion": "1"}
    with pytest.raises(RegistryError, match="no previous version") as caught:
        rollback(uri, name)
    assert caught.value.hint.endswith("1, 2, 3") and not caught.value.retryable
    tags = [mlflow_client(uri).get_model_version(name, v).tags for v in "12"]
    assert tags[0]["dora.promoted"].endswith(": gate passed") and "dora.restored" in tags[0]
    assert tags[1]["dora.rolled_back"].endswith(": worse answers") and tags[1]["dora.digest"] == "b"


def test_the_life_of_a_model_in_sqlite(mlflow_sqlite: str) -> None:
    the_life_of_a_model(mlflow_sqlite, "policy")


@pytest.mark.component
def test_the_life_of_a_model_on_a_server(mlflow_server: str) -> None:
    the_life_of_a_model(mlflow_server, "policy")


def test_a_local_model_is_registered_where_it_lies_and_can_be_downloaded(
    mlflow_sqlite: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register(mlflow_sqlite, "policy", str(model))
    promote(mlflow_sqlite, "policy", version)
    assert mlflow_client(mlflow_sqlite).get_model_version("policy", version).source == travelling(str(model))
    assert (download(monkeypatch, mlflow_sqlite, "models:/policy@champion") / "model.safetensors").read_bytes() == bytes(range(256))


@pytest.mark.component
def test_a_server_gets_a_copy_of_a_small_model(mlflow_server: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = mlflow_client(mlflow_server)
    run = client.create_run(client.create_experiment("small")).info.run_id
    with monkeypatch.context() as earlier:  # a release that did not make an MLflow model of it
        earlier.setattr(registry, "describe_model", lambda folder: [])
        version = register(mlflow_server, "small", str(model), run)
    assert {item.path for item in client.list_artifacts(run, "model")} == {"model/config.json", "model/model.safetensors"}
    assert register(mlflow_server, "small", str(model), run) == version
    assert {item.path for item in client.list_artifacts(run, "model")} > {"model/MLmodel", "model/dora_chat.py"}
    stored = client.get_model_version("small", version)
    assert (stored.source, stored.run_id, stored.tags["dora.model_uri"]) == (f"runs:/{run}/model", run, str(model))
    assert (download(monkeypatch, mlflow_server, f"models:/small/{version}") / "model.safetensors").read_bytes() == bytes(range(256))


@pytest.mark.component
def test_a_model_too_large_for_a_copy_is_registered_by_its_place(mlflow_server: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(model / "model.safetensors", registry.UPLOAD_LIMIT_BYTES + 1)  # sparse: no disk is used
    client = mlflow_client(mlflow_server)
    run = client.create_run(client.create_experiment("large")).info.run_id
    version = register(mlflow_server, "large", str(model), run)
    assert client.get_model_version("large", version).source == travelling(str(model))
    assert client.list_artifacts(run) == []
    assert (download(monkeypatch, mlflow_server, f"models:/large/{version}") / "config.json").read_text() == "{}"


def test_an_unknown_version_and_an_unknown_model_name_what_exists(mlflow_sqlite: str) -> None:
    register(mlflow_sqlite, "policy", "s3://bucket/a")
    with pytest.raises(RegistryError, match="no version '7'") as caught:
        promote(mlflow_sqlite, "policy", "7")
    assert "allowed: 1" in caught.value.hint
    with pytest.raises(RegistryError, match="no model 'polcy'") as caught:
        rollback(mlflow_sqlite, "polcy")
    assert "did you mean 'policy'" in caught.value.hint
    assert aliases(mlflow_sqlite, "polcy") == {}


def test_a_dead_server_is_a_service_error() -> None:
    with pytest.raises(ServiceError, match="does not answer") as caught:
        aliases("http://me:secret@127.0.0.1:9", "policy")
    assert caught.value.retryable and "secret" not in str(caught.value)


class Gate(ThreadingHTTPServer):
    """A proxy of an MLflow server. ``answers`` replace the server's own, one per request; None forwards the request."""

    def __init__(self, server: str, path: str, answers: list[int | None], passes_on: bool = False):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status = answers.pop(0) if answers and path in self.path else None
                if status is None or passes_on:
                    headers = {"Content-Type": self.headers.get("Content-Type") or "application/json"}
                    answer = requests.request(self.command, server + self.path, data=body, headers=headers, timeout=30)
                self.send_response(status or answer.status_code)
                self.end_headers()
                self.wfile.write(b"<html>no</html>" if status else answer.content)

            do_POST = do_PATCH = do_DELETE = do_GET

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_us_asks_for_credentials(status: int) -> None:
    with Gate("", "", [status] * 10) as gate:
        with pytest.raises(RegistryError, match=rf"refuses us: .*{status}") as caught:
            aliases(gate.url, "policy")
        gate.shutdown()
    assert "DORA_AUTH" in caught.value.hint and not caught.value.retryable


@pytest.mark.fault(24)
@pytest.mark.component
@pytest.mark.parametrize("retries", ["0", "1"])
def test_a_version_whose_answer_was_lost_is_not_registered_twice(mlflow_server: str, retries: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has created it, and answers 500; MLflow's client may repeat the request, which would create another."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", retries)
    name = f"lost{retries}"
    with Gate(mlflow_server, "model-versions/create", [500], passes_on=True) as gate:
        if retries == "0":
            with pytest.raises(ServiceError) as caught:
                register(gate.url, name, "s3://bucket/a")
            assert caught.value.retryable
        assert register(gate.url, name, "s3://bucket/a") == "1"
        assert register(gate.url, name, "s3://bucket/a") == "1"
        gate.shutdown()
    assert [v.version for v in mlflow_client(mlflow_server).search_model_versions(f"name='{name}'")] == ["1"]


def test_an_address_mlflow_does_not_know_is_a_service_error() -> None:
    with pytest.raises(ServiceError, match="cannot open MLflow at ftp://host"):
        aliases("ftp://host", "policy")


@pytest.mark.fault(24)
def test_a_promotion_replaces_only_the_champion_it_was_decided_against(mlflow_sqlite: str) -> None:
    one, two, three = (register(mlflow_sqlite, "policy", f"s3://bucket/{n}") for n in "abc")
    promote(mlflow_sqlite, "policy", one, instead_of=None)
    with pytest.raises(RegistryMoved, match="version 2 of policy was to replace no champion, but version 1 is champion now") as caught:
        promote(mlflow_sqlite, "policy", two, instead_of=None)
    assert caught.value.retryable and "dora promote policy 2" in caught.value.hint
    promote(mlflow_sqlite, "policy", two, instead_of=one)
    promote(mlflow_sqlite, "policy", two, instead_of=one)  # done already
    with pytest.raises(RegistryMoved, match="was to replace version 1, but version 2 is champion"):
        promote(mlflow_sqlite, "policy", three, instead_of=one)
    assert aliases(mlflow_sqlite, "policy") == {"champion": "2", "previous": "1"}


@pytest.mark.fault(7)
@pytest.mark.parametrize("step", ["_write_page", "set_registered_model_alias", "delete_registered_model_alias"])
def test_a_rollback_that_was_killed_is_finished_by_the_next(
    step: str, mlflow_sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (register(mlflow_sqlite, "demo", str(tmp_path / name)) for name in ("first", "second"))
    promote(mlflow_sqlite, "demo", first)
    promote(mlflow_sqlite, "demo", second)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(registry if step == "_write_page" else registry._client(mlflow_sqlite), step, killed)
        rollback(mlflow_sqlite, "demo", "bad")
    assert rollback(mlflow_sqlite, "demo", "bad") == first
    assert aliases(mlflow_sqlite, "demo") == {"champion": first}
    told = {version: [entry["action"] for entry in history(mlflow_sqlite, "demo", version)] for version in (first, second)}
    assert (
        told[second] == ["promoted", "rolled_back"] and told[first][:2] == ["promoted", "restored"] and set(told[first][2:]) <= {"restored"}
    )
    with pytest.raises(RegistryError, match="no previous version to return to"):
        rollback(mlflow_sqlite, "demo", "bad")


def test_a_rejected_version_is_nobodys_challenger(mlflow_sqlite: str) -> None:
    one, two = (register(mlflow_sqlite, "policy", f"s3://bucket/{n}", tags={"dora.evaluation": n * 64}) for n in "ab")
    promote(mlflow_sqlite, "policy", one)
    challenge(mlflow_sqlite, "policy", two)
    reject(mlflow_sqlite, "policy", two, "unsafe", who="ann")
    reject(mlflow_sqlite, "policy", two, "unsafe", who="ann")
    assert aliases(mlflow_sqlite, "policy") == {"champion": "1"}
    challenged, rejected = history(mlflow_sqlite, "policy", two)
    assert (challenged["action"], rejected["action"]) == ("challenger", "rejected")
    assert (rejected["who"], rejected["why"], rejected["evaluation"]) == ("ann", "unsafe", "b" * 64)
    tags = mlflow_client(mlflow_sqlite).get_model_version("policy", two).tags
    assert tags["dora.rejected"] == f"{rejected['when']} by ann: unsafe" and tags["dora.decision"] == "refused"
    with pytest.raises(RegistryError, match="version 1 of policy is the champion") as caught:
        reject(mlflow_sqlite, "policy", one, "unsafe")
    assert "dora rollback policy" in caught.value.hint
    with pytest.raises(RegistryError, match="no version '7'"):
        reject(mlflow_sqlite, "policy", "7", "unsafe")


def test_the_versions_page_says_what_was_decided_and_by_whom(mlflow_sqlite: str) -> None:
    one = register(mlflow_sqlite, "policy", "s3://bucket/a")
    promote(mlflow_sqlite, "policy", one, "better where it counts", who="ann")
    registry.describe(mlflow_sqlite, "policy", one, "promoted", "approved by ann; KL at most 50: 1.2")
    page = mlflow_client(mlflow_sqlite).get_model_version("policy", one).description
    assert page.startswith("**promoted**\n\n- approved by ann\n- KL at most 50: 1.2\n\n- 20") and page.endswith(": promoted by ann")

"""The server of the home page: authentication, names, pages, errors; its pages in memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient

from dora_core.errors import StoreError
from flows.report import render
from flows.report.serve import HEADERS, application, main
from infra.settings import Settings
from infra.store.store import Store
from infra.tracking import model_registry
from tests.flows.report.runs import make_run

RUN = "demo-20260131-120000-ab12"
LOGIN = ("ann", "correct-horse-battery")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = Settings(home=tmp_path / "home")
    make_run(Store(settings.store_uri), ["human", "model"], run_id=RUN, flow="realign")
    return settings


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs whose page was rendered; the page itself is tested in test_page.py."""
    calls: list[str] = []
    monkeypatch.setattr(render, "page_of", lambda store, run_id: calls.append(run_id) or f"page of {run_id}")
    return calls


def client(settings: Settings, host: str = "127.0.0.1:4100") -> TestClient:
    return TestClient(application(settings), base_url=f"http://{host}")


@pytest.mark.parametrize("path", ["/", f"/runs/{RUN}", "/missing", "/health/", "//health", "/HEALTH"])
def test_every_path_requires_the_password(settings: Settings, path: str) -> None:
    guarded = Settings(home=settings.home, auth=":".join(LOGIN))
    browser = client(guarded)
    for wrong in (None, ("ann", "wrong"), ("", ""), (LOGIN[0], LOGIN[1] + "x")):
        refused = browser.get(path, auth=wrong)
        assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic")
    for header in ("Bearer x", "Basic ???", "Basic"):
        assert browser.get(path, headers={"authorization": header}).status_code == 401
    assert browser.get("/", auth=LOGIN).status_code == 200


def test_health_is_open_and_holds_no_data(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = client(Settings(home=settings.home, auth=":".join(LOGIN)))
    assert guarded.get("/health").text == "OK"

    def broken(*_: object) -> list[str]:
        raise StoreError("s3://secret-bucket does not answer")

    monkeypatch.setattr(Store, "list", broken)
    answer = guarded.get("/health")
    assert (answer.status_code, answer.text) == (503, "the store cannot be read")
    assert "secret-bucket" in client(settings).get("/").text, "behind the password the reason is shown"


def test_a_password_of_mlflow_that_is_set_stays(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: None)
    for name, value in {"HOME": str(settings.home), "AUTH": ":".join(LOGIN)}.items():
        monkeypatch.setenv(f"DORA_{name}", value)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-password")
    for name in ("MLFLOW_TRACKING_USERNAME", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, "")
    main(["--port", "4100"])
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "another-password" and os.environ["MLFLOW_TRACKING_USERNAME"] == LOGIN[0]


def test_pages_of_servers_elsewhere_are_linked(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers, where no `dora up` has recorded services."""
    monkeypatch.setattr(model_registry, "versions", lambda uri: [])
    elsewhere = {"prefect_api_url": "http://prefect:4200/api", "mlflow_uri": "http://mlflow:5000", "ray_address": "http://ray-head:8265"}
    text = client(settings.model_copy(update=elsewhere)).get("/").text
    assert all(f'href="{url}"' in text for url in ("http://prefect:4200", "http://mlflow:5000", "http://ray-head:8265"))
    public = settings.model_copy(update=elsewhere | {"public_url": "https://{service}.example.org"})
    text = client(public).get("/").text
    assert all(f'href="https://{name}.example.org"' in text for name in ("prefect", "mlflow", "ray"))


def test_only_its_own_names_are_answered_and_nothing_is_written(settings: Settings) -> None:
    assert client(settings, "localhost:4100").get("/health").status_code == 200
    assert client(settings, "evil.example").get("/health").status_code == 400
    proxied = settings.model_copy(update={"public_url": "https://{service}.example.org"})
    assert client(proxied, "home.example.org").get("/health").status_code == 200
    for method in ("post", "put", "delete"):
        assert getattr(client(settings), method)("/").status_code == 405


def test_the_home_page_links_to_the_runs(settings: Settings) -> None:
    answer = client(settings).get("/")
    assert answer.status_code == 200 and f'href="runs/{RUN}"' in answer.text and "refused" in answer.text
    assert answer.headers["content-security-policy"] == HEADERS["content-security-policy"]


def test_the_page_of_an_ended_run_is_rendered_once_and_again_when_its_manifest_changes(settings: Settings, rendered: list[str]) -> None:
    browser, store = client(settings), Store(settings.store_uri)
    assert [browser.get(f"/runs/{RUN}").text for _ in range(2)] == [f"page of {RUN}"] * 2 and rendered == [RUN]
    store.write_json(f"runs/{RUN}/run.json", store.read_json(f"runs/{RUN}/run.json") | {"decision": "challenger"})
    browser.get(f"/runs/{RUN}")
    assert rendered == [RUN, RUN]
    store.write_json(f"runs/{RUN}/run.json", store.read_json(f"runs/{RUN}/run.json") | {"status": "running"})
    for _ in range(2):
        browser.get(f"/runs/{RUN}")
    assert rendered == [RUN] * 4


@pytest.mark.parametrize("name", ["demo-1", "%2e%2e", "%2e%2e%2fservices.json", ".hidden"])
def test_another_run_is_not_found(settings: Settings, name: str) -> None:
    assert client(settings).get(f"/runs/{name}").status_code == 404

"""Which servers and folders a process uses, and the environment of its children."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dora_core.errors import ConfigError
from infra.back_ends import BackEnds, write_private
from infra.processes import RecordedProcess, spawn, terminate_tree
from infra.settings import Service, ServicesRecord, Settings, apply_environment, server_environment, tool_environment

AUTH = "ann:twelve-letters"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PGPASSWORD"):
        monkeypatch.delenv(name, raising=False)
    return Settings(home=tmp_path)


def test_without_servers_everything_is_below_home(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    places = apply_environment(settings)
    assert places.mlflow_uri == f"sqlite:///{tmp_path}/mlflow.db" == os.environ["MLFLOW_TRACKING_URI"]
    assert places.prefect_api_url is None and "PREFECT_API_URL" not in os.environ
    assert places.ray_dashboard is None and places.ray_environment == {}
    assert os.environ["PREFECT_HOME"] == f"{tmp_path}/prefect"


def test_own_setting_beats_the_tools_variable(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tool")
    assert settings.effective().mlflow_uri == "http://tool"
    assert settings.model_copy(update={"mlflow_uri": "http://own"}).effective().mlflow_uri == "http://own"


@pytest.mark.parametrize(
    ("variable", "url", "where"),
    [
        ("DORA_MLFLOW_URI", "http://ann:secret@host", "MLFLOW_TRACKING_USERNAME"),
        ("MLFLOW_TRACKING_URI", "postgresql://ann:secret@host/mlflow", "PGPASSWORD"),
        ("PREFECT_API_URL", "http://ann:secret@host/api", "PREFECT_API_AUTH_STRING"),
        ("DORA_RAY_ADDRESS", "http://ann:secret@host:8265", "RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_servers_are_named_without_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, url: str, where: str) -> None:
    monkeypatch.setenv(variable, url)
    with pytest.raises(ConfigError, match="holds a password") as refused:
        Settings(home=tmp_path).effective()
    assert where in refused.value.hint and "secret" not in str(refused.value)


def test_a_database_without_a_remembered_password_reaches_the_drivers_by_their_variable(settings: Settings) -> None:
    here = settings.model_copy(update={"postgres": Settings(postgres="postgresql://dora:p%40ss@db:5433").postgres})
    tools = tool_environment(here)
    assert tools["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == "postgresql+asyncpg://dora@db:5433/prefect"
    assert here.mlflow_database == "postgresql+psycopg://dora@db:5433/mlflow"
    assert tools["PGPASSWORD"] == "p@ss" and "p@ss" not in repr(here)
    assert "PGPASSWORD" not in tool_environment(settings)


def test_a_remembered_password_is_not_sent_to_servers_of_others(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_private(settings.root / "auth", AUTH)
    assert settings.effective().credentials["PREFECT_API_AUTH_STRING"] == AUTH
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    places = apply_environment(settings)
    assert set(places.credentials) == {"PREFECT_API_AUTH_STRING"}
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ and os.environ["PREFECT_API_AUTH_STRING"] == AUTH
    assert "twelve" not in repr(places)
    monkeypatch.setenv("DORA_AUTH", AUTH)
    assert Settings(home=settings.home).effective().credentials["MLFLOW_TRACKING_PASSWORD"] == "twelve-letters"


def test_addresses_of_one_mlflow_have_one_history(settings: Settings) -> None:
    """The outbox of updates that wait is named by it: a server of `dora up` on another port is the same MLflow."""
    mlflow = Service(url="http://127.0.0.1:5001", process=RecordedProcess.current("mlflow server"))
    settings.services_file.write_text(ServicesRecord(services={"mlflow": mlflow}).model_dump_json())
    assert settings.mlflow_history(mlflow.url) == settings.mlflow_history(settings.mlflow_database) == settings.mlflow_database
    assert settings.mlflow_history("http://elsewhere:5000") == "http://elsewhere:5000"


def test_servers_that_run_are_used_and_those_that_ended_are_not(settings: Settings, tmp_path: Path) -> None:
    child = spawn("prefect", ["sleep", "60"], log=tmp_path / "log")
    record = ServicesRecord(services={"prefect": Service(url="http://127.0.0.1:4201", process=child)})
    settings.services_file.write_text(record.model_dump_json())
    places = settings.effective()
    assert (places.prefect_api_url, places.prefect_ui) == ("http://127.0.0.1:4201/api", "http://127.0.0.1:4201")
    assert terminate_tree([child], grace=5.0) == ["prefect"]
    assert settings.effective().prefect_api_url is None and settings.services() == record, "the record stays"


def test_a_choice_of_dora_up_stays_until_it_is_set_or_revoked(settings: Settings) -> None:
    recorded = BackEnds(postgres="postgresql://dora@db:5433/postgres", artifacts="s3://bucket/mlflow", host="0.0.0.0")
    settings.services_file.write_text(ServicesRecord(back_ends=recorded).model_dump_json())
    assert settings.back_ends == recorded and settings.artifact_root == "s3://bucket/mlflow"
    changed = Settings(home=settings.home, postgres="none", artifacts="s3://other/", host="127.0.0.1").back_ends
    assert changed == BackEnds(postgres=None, artifacts="s3://other", host="127.0.0.1")
    with pytest.raises(ConfigError, match="artifacts holds a password"):
        _ = Settings(home=settings.home, artifacts="s3://key:secret@bucket").back_ends


def test_the_users_own_variables_stay(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", "/mine")
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    apply_environment(settings)
    assert os.environ["PREFECT_HOME"] == "/mine" and os.environ["DO_NOT_TRACK"] == "true"
    assert os.environ["DORA_HOME"] == str(settings.root)


def test_updates_that_an_earlier_release_left_for_mlflow_are_found(settings: Settings) -> None:
    assert settings.outbox == settings.root / "spool"


# ------------------------------------------------------------------------------------------- empty variables, other servers


@pytest.mark.parametrize("field", Settings.model_fields)
def test_a_variable_set_to_nothing_is_not_set(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(f"DORA_{field.upper()}", raising=False)
    unset = getattr(Settings(), field)
    monkeypatch.setenv(f"DORA_{field.upper()}", "")
    assert getattr(Settings(), field) == unset


def test_empty_addresses_of_the_tools_are_not_set(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("PREFECT_API_URL", "")
    places = apply_environment(settings)
    assert places.mlflow_uri == settings.mlflow_database and places.prefect_api_url is None and "PREFECT_API_URL" not in os.environ


def test_what_is_left_by_another_server_reaches_neither_this_process_nor_ours(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {
        "PREFECT_API_KEY": "pnu_1",
        "PREFECT_API_AUTH_STRING": "x:y",
        "PREFECT_PROFILES_PATH": "/elsewhere/profiles.toml",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////elsewhere/x.db",
        "MLFLOW_TRACKING_PASSWORD": "secret",
    }
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DORA_STORE", "relative")
    apply_environment(settings)
    server = server_environment(settings.model_copy(update={"store": "relative"}))
    for environment in (os.environ, server):
        assert not [name for name, value in theirs.items() if environment.get(name) == value]
        assert environment["PREFECT_PROFILES_PATH"] == f"{settings.prefect_home}/profiles.toml"
        assert environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == f"sqlite+aiosqlite:///{settings.prefect_home}/prefect.db"
        assert "127.0.0.1" in environment["NO_PROXY"]
    assert server["DORA_STORE"] == str(Path("relative").absolute())


def test_the_password_of_a_server_that_is_set_stays(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    apply_environment(settings)
    assert (os.environ["PREFECT_API_KEY"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("pnu_1", "secret")


@pytest.mark.parametrize(
    ("public", "prefect", "mlflow"),
    [
        ("https://{service}.example.org", "https://prefect.example.org", "https://mlflow.example.org/#/runs/1"),
        ("https://example.org/{service}/", "https://example.org/prefect", "https://example.org/mlflow/#/runs/1"),
        ("http://gpu-box", "http://gpu-box:4200", "http://gpu-box:5000/#/runs/1"),
    ],
)
def test_pages_have_the_address_that_browsers_reach(settings: Settings, public: str, prefect: str, mlflow: str) -> None:
    here = settings.model_copy(
        update={"public_url": public, "prefect_api_url": "http://127.0.0.1:4200/api", "mlflow_uri": "http://127.0.0.1:5000"}
    )
    places = here.effective()
    assert places.prefect_ui == prefect and places.page("http://127.0.0.1:5000/#/runs/1") == mlflow
    assert places.prefect_api_url == "http://127.0.0.1:4200/api", "clients on this machine go directly"
    assert places.page("http://127.0.0.1:50001/x") == "http://127.0.0.1:50001/x" and places.page("sqlite:///x") == "sqlite:///x"


@pytest.mark.parametrize("public", ["example.org", "ftp://x/{service}", "http://ann:secret@host", "http://host:8080", "http://host/dora"])
def test_an_address_that_is_not_one_of_three_servers_is_refused(settings: Settings, public: str) -> None:
    with pytest.raises(ConfigError, match="DORA_PUBLIC_URL") as refused:
        settings.model_copy(update={"public_url": public}).effective()
    assert "{service}" in refused.value.hint and "secret" not in str(refused.value)

"""Settings of a machine: locations of the store, the trackers and the Ray head. Environment variables ``DORA_*``.

A run's configuration defines *what* to compute and travels between machines; these settings define *where* and stay.
:meth:`Settings.effective` decides which server is used: the one set here, else the one in the tool's own environment variable (the case of
a flow started by a Prefect worker), else that of ``dora up``, else none: everything then runs in this process and below ``home``, in the
same files (or databases) as the servers use, so there is one history.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from dora_core import plugins
from dora_core.environment import set_default, variable
from dora_core.strict_model import StrictModel
from infra.back_ends import (
    AUTH,
    DATABASE_PASSWORD,
    NONE,
    BackEnds,
    check_auth,
    check_public,
    is_loopback,
    names_of,
    public_address,
    refuse_credentials,
    split_postgres,
)
from infra.child_environment import (
    MLFLOW_LOGIN,
    PREFECT_LOGIN,
    RAY_LOGIN,
    child_environment,
    child_folder,
    forget,
    without_proxy,
)
from infra.databases import sqlite_url
from infra.processes import RecordedProcess
from infra.ray_head import RayHead

WORK_POOL = "dora"


class Service(StrictModel):
    """One server started by ``dora up``; ``url`` is the address for browsers and clients ("" for the worker)."""

    url: str
    process: RecordedProcess


class ServicesRecord(StrictModel):
    """``<home>/services.json``: prefect, worker, mlflow, ray, home; and the back ends, which stay after `dora down`."""

    services: dict[str, Service] = Field(default_factory=dict)
    back_ends: BackEnds = BackEnds()

    def url(self, name: str) -> str | None:
        """Return the URL of a service if its recorded process runs."""
        service = self.services.get(name)
        return service.url if service and service.process.alive() else None

    @property
    def prefect_api_url(self) -> str | None:
        """Address of the API of the Prefect server, if it runs."""
        url = self.url("prefect")
        return f"{url}/api" if url else None


@dataclass(frozen=True)
class Places:
    """Addresses of the servers of this process; None = no server, the work happens in this process. No address holds a password.

    Attributes:
        ray_environment, credentials: environment variables that authenticate the clients of Ray, and of Prefect and MLflow.
        public_url: address for browsers, see ``DORA_PUBLIC_URL``; None: the servers' own.
        home_page: of `dora up`, which no client calls.
    """

    mlflow_uri: str
    prefect_api_url: str | None
    ray_dashboard: str | None
    ray_environment: dict[str, str] = field(default_factory=dict, repr=False)
    credentials: dict[str, str] = field(default_factory=dict, repr=False)
    public_url: str | None = None
    home_page: str | None = None

    @property
    def prefect_ui(self) -> str | None:
        """Prefect's pages, as browsers reach them."""
        return self.page(self.prefect_api_url.removesuffix("/api")) if self.prefect_api_url else None

    def page(self, url: str) -> str:
        """Return the address of a server's page for browsers; other addresses as they are."""
        prefect = self.prefect_api_url.removesuffix("/api") if self.prefect_api_url else None
        for service, own in (("prefect", prefect), ("mlflow", self.mlflow_uri), ("ray", self.ray_dashboard), ("home", self.home_page)):
            if self.public_url and own and own.startswith("http") and (url == own or url.startswith(f"{own.rstrip('/')}/")):
                return public_address(self.public_url, service, own) + url[len(own.rstrip("/")) :]
        return url


class Settings(BaseSettings):
    """Read once per process with ``Settings()``; every field may be set as ``DORA_<FIELD>``. Set to nothing is not set."""

    model_config = SettingsConfigDict(env_prefix="DORA_", extra="ignore", env_ignore_empty=True)

    home: Path = Field(Path(".dora"), description="Folder of everything this project writes on this machine.")
    store: str | None = Field(None, description="Artifact store: path or pyarrow URI. Default: <home>/store.")
    mlflow_uri: str | None = Field(None, description="MLflow tracking URI. Default: the server of `dora up`, else SQLite in <home>.")
    prefect_api_url: str | None = Field(
        None, description="Prefect API (http://host:4200/api). Default: `dora up`'s, else an API in this process."
    )
    ray_address: str | None = Field(
        None, description="Address of a Ray dashboard (http://host:8265). Default: `dora up`'s, else an own head per command."
    )
    postgres: SecretStr | None = Field(
        None, description="PostgreSQL server for Prefect and MLflow, postgresql://user:password@host:5432. Default: SQLite in <home>."
    )
    artifacts: str | None = Field(None, description="MLflow's artifact root, s3://bucket/prefix. Default: <home>/mlartifacts.")
    host: str | None = Field(None, description="Address the servers of `dora up` listen on. Default: 127.0.0.1.")
    public_url: str | None = Field(
        None,
        description="Address under which browsers reach the servers of `dora up`, e.g. https://{service}.example.org. Default: their own.",
    )
    auth: SecretStr | None = Field(None, description="user:password that Prefect and MLflow require. Default: none, on loopback only.")

    @property
    def root(self) -> Path:
        return self.home.expanduser().resolve()

    @property
    def store_uri(self) -> str:
        return self.store or str(self.root / "store")

    @property
    def prefect_home(self) -> Path:
        """PREFECT_HOME; the server of `dora up` and the API in this process share its SQLite file."""
        return self.root / "prefect"

    @property
    def back_ends(self) -> BackEnds:
        """The choice set here, else the one that the last `dora up` recorded.

        Raises:
            ConfigError: an address is malformed, or holds a password that does not belong there.
        """
        chosen = self.services().back_ends.model_dump()
        if self.postgres is not None:
            url = self.postgres.get_secret_value()
            chosen["postgres"] = None if url == NONE else split_postgres(url)[0]
        if self.artifacts is not None:
            remedy = "the credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            chosen["artifacts"] = None if self.artifacts == NONE else refuse_credentials(self.artifacts.rstrip("/"), "artifacts", remedy)
        if self.host is not None:
            chosen["host"] = self.host
        return BackEnds(**chosen)

    def credentials(self) -> tuple[str, str] | None:
        """Return user and password of the Prefect and MLflow servers of `dora up`; None if they require none."""
        file = self.root / AUTH
        text = self.auth.get_secret_value() if self.auth else file.read_text(encoding="utf-8") if file.exists() else NONE
        return None if text == NONE else check_auth(text)

    def database_secret(self) -> dict[str, str]:
        """Return the environment variable from which both database drivers read the password; empty if none is known."""
        url = self.postgres.get_secret_value() if self.postgres else NONE
        password = None if url == NONE else split_postgres(url)[1]
        file = self.root / DATABASE_PASSWORD
        if password is None and file.exists():
            password = file.read_text(encoding="utf-8")
        return {} if password is None else {"PGPASSWORD": password}

    @property
    def mlflow_database(self) -> str:
        """SQLAlchemy URL, shared by the MLflow server of `dora up` and direct clients."""
        chosen = self.back_ends
        return chosen.database("psycopg", "mlflow") if chosen.postgres else sqlite_url(self.root / "mlflow.db")

    @property
    def prefect_database(self) -> str:
        """SQLAlchemy URL, shared by the Prefect server of `dora up` and the API of a command."""
        chosen = self.back_ends
        return chosen.database("asyncpg", "prefect") if chosen.postgres else sqlite_url(self.prefect_home / "prefect.db", "aiosqlite")

    def mlflow_history(self, uri: str) -> str:
        """Return one name for all addresses of the same runs: that of the server of `dora up`, on any port, and of its database."""
        return self.mlflow_database if uri in (self.mlflow_database, self.services().url("mlflow")) else uri

    @property
    def mlflow_artifacts(self) -> Path:
        """Artifact root of new experiments if no other is chosen; written by the clients themselves."""
        return self.root / "mlartifacts"

    @property
    def outbox(self) -> Path:
        """Updates that MLflow has not received yet, in the folder in which earlier releases left theirs."""
        return self.root / "spool"

    @property
    def local_names(self) -> list[str]:
        """Further names of this machine under which its servers are reached, never through a proxy."""
        host = self.back_ends.host
        return [] if is_loopback(host) else names_of(host)

    @property
    def child_folder(self) -> Path:
        """Working folder of the servers and of the worker."""
        return child_folder(self.root)

    @property
    def artifact_root(self) -> str:
        folder = str(self.mlflow_artifacts)
        # MLflow reads a path as a URI: a query, a fragment and escapes in it must be escaped.
        return self.back_ends.artifacts or (self.mlflow_artifacts.as_uri() if set(folder) & set("?#%") else folder)

    @property
    def log_folder(self) -> Path:
        """Logs of services and of failed jobs."""
        return self.root / "logs"

    @property
    def ray_folder(self) -> Path:
        """Parent of the folders of Ray heads: ``services`` for that of `dora up`, one per command otherwise."""
        return self.root / "ray"

    @property
    def fingerprints(self) -> Path:
        """Memory of the inputs' checksums on this machine; deleting it costs a read of each file."""
        return self.root / "fingerprints.json"

    @property
    def services_file(self) -> Path:
        return self.root / "services.json"

    def services(self) -> ServicesRecord:
        """Read the record of `dora up`, empty if it never ran; the services in it may have ended."""
        try:
            return ServicesRecord.model_validate(json.loads(self.services_file.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return ServicesRecord()

    def effective(self) -> Places:
        """Choose the servers, see the module docstring. Checks recorded processes only, sends no request.

        Raises:
            ConfigError: an address holds a password.
        """
        up = self.services()
        mlflow = self.mlflow_uri or variable("MLFLOW_TRACKING_URI")
        prefect = self.prefect_api_url or variable("PREFECT_API_URL")
        refuse_credentials(mlflow or "", "the address of MLflow", "the rest as MLFLOW_TRACKING_USERNAME and _PASSWORD, or as PGPASSWORD")
        refuse_credentials(prefect or "", "the address of Prefect", "user:password as PREFECT_API_AUTH_STRING")
        refuse_credentials(self.ray_address or "", "the address of Ray", "a token as RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH")
        own = {"mlflow": up.url("mlflow"), "prefect": up.prefect_api_url}
        head = None if self.ray_address else RayHead.attach(self.ray_folder / "services")
        ambient = {name: value for name in sorted(RAY_LOGIN) if (value := variable(name))}
        # The recorded password is for the servers of `dora up` only; one that is set (DORA_AUTH) is also for servers that are set.
        trusted = {"MLFLOW": self.auth or mlflow in (None, own["mlflow"]), "PREFECT": self.auth or prefect in (None, own["prefect"])}
        return Places(
            mlflow_uri=mlflow or own["mlflow"] or self.mlflow_database,
            prefect_api_url=prefect or own["prefect"],
            ray_dashboard=self.ray_address or (head.dashboard_url if head else None),
            ray_environment=head.environment() if head else ambient if self.ray_address else {},
            home_page=up.url("home"),
            public_url=check_public(self.public_url) if self.public_url else None,
            credentials={name: value for name, value in self.client_environment().items() if trusted[name.partition("_")[0]]},
        )

    def client_environment(self) -> dict[str, str]:
        """Return user and password in the variables of Prefect's and MLflow's clients; empty if none are required."""
        credentials = self.credentials()
        if credentials is None:
            return {}
        user, password = credentials
        return {
            "PREFECT_API_AUTH_STRING": f"{user}:{password}",
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password,
        }


def apply_environment(settings: Settings) -> Places:
    """Set the environment of Prefect, MLflow and Ray for this process and its children, *before* any of them is imported.

    Variables that the user has set stay, except passwords of other servers: they are not sent to the servers of this project. Returns
    :meth:`Settings.effective`.
    """
    places, tools = settings.effective(), tool_environment(settings)
    own = settings.services()
    if places.prefect_api_url is None or places.prefect_api_url == own.prefect_api_url:
        forget(PREFECT_LOGIN)
    if not places.mlflow_uri.startswith("http") or places.mlflow_uri == own.url("mlflow"):
        forget(MLFLOW_LOGIN)
    forget({"PREFECT_API_URL"})  # set to nothing, where there is no server
    if places.prefect_api_url:
        os.environ["PREFECT_API_URL"] = places.prefect_api_url
    os.environ["MLFLOW_TRACKING_URI"] = places.mlflow_uri
    os.environ["DORA_HOME"] = str(settings.root)  # children may run in another directory
    os.environ |= {name: tools[name] for name in OWN_PLACES}
    for name, value in (tools | places.credentials).items():
        set_default(name, value)
    os.environ |= without_proxy(os.environ, settings.local_names)
    return places


OWN_PLACES = ("PREFECT_PROFILES_PATH", "PREFECT_SERVER_DATABASE_CONNECTION_URL", "_MLFLOW_SERVER_ARTIFACT_ROOT")
"""Never those of the user's environment: they belong to another server."""


def tool_environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables of every child process: the chosen places of data, no telemetry, no pickles, short time-outs."""
    chosen = settings.back_ends
    return {
        "PREFECT_HOME": str(settings.prefect_home),
        "PREFECT_PROFILES_PATH": str(settings.prefect_home / "profiles.toml"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": settings.prefect_database,
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_CLIENT_MAX_RETRIES": "6",  # after 2, 4 … 64 s: runs survive two minutes without the server; Prefect's 5 mean one
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # a dead server must not block a run for minutes
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 8 processes and 700 MB for features unused here
        # Artifact root of experiments created through the database directly; MLflow reads it nowhere else.
        "_MLFLOW_SERVER_ARTIFACT_ROOT": settings.artifact_root,
        "RAY_USAGE_STATS_ENABLED": "0",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **(settings.database_secret() if chosen.postgres else {}),
    }


def server_environment(settings: Settings, *own: Mapping[str, str], keep: Iterable[str] = ()) -> dict[str, str]:
    """Return the environment of a server or worker of this project: its own back ends, whatever the user's environment holds."""
    # The settings of `up` come from its record, and passwords from files.
    excluded = {"DORA_POSTGRES", "DORA_ARTIFACTS", "DORA_HOST", "DORA_AUTH"}
    places = {"DORA_HOME": str(settings.root)}
    if settings.store and "://" not in settings.store:
        places["DORA_STORE"] = str(Path(settings.store).expanduser().absolute())
    base = tool_environment(settings) | places | plugins.environment()
    return child_environment(base, *own, excluded=excluded, keep=keep, hosts=settings.local_names)

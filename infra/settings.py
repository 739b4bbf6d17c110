"""Settings of the place: where the store, the trackers and the Ray head are. Environment variables ``DORA_*``.

A run's configuration says *what* to compute and travels between machines; these say *where* and stay. :meth:`Settings.effective`
decides which server is used: what is set here, else what the tool's own environment variable names (a flow started by a Prefect
worker finds its server so), else what ``dora up`` started, else none: everything in this process and below ``home``, in the very
same files the servers use, so there is one history.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from dora_core.config import StrictModel
from infra.processes import RecordedProcess
from infra.ray_head import RayHead

WORK_POOL = "dora"


class Service(StrictModel):
    """One server started by ``dora up``; ``url`` is what people and clients open ("" for the worker)."""

    url: str
    process: RecordedProcess


class ServicesRecord(StrictModel):
    """``<home>/services.json``: prefect, worker, mlflow, ray."""

    services: dict[str, Service] = Field(default_factory=dict)

    def url(self, name: str) -> str | None:
        """URL of a service whose recorded process runs."""
        service = self.services.get(name)
        return service.url if service and service.process.alive() else None


@dataclass(frozen=True)
class Places:
    """Where this process finds its servers; None = there is none and the work happens in this process."""

    mlflow_uri: str
    prefect_api_url: str | None
    ray_dashboard: str | None
    ray_environment: dict[str, str] = field(default_factory=dict)

    @property
    def prefect_ui(self) -> str | None:
        return self.prefect_api_url.removesuffix("/api") if self.prefect_api_url else None


class Settings(BaseSettings):
    """Read once per process with ``Settings()``; every field may be set as ``DORA_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix="DORA_", extra="ignore")

    home: Path = Field(Path(".dora"), description="Folder of everything this project writes on this machine.")
    store: str | None = Field(None, description="Artifact store: path or pyarrow URI. Default: <home>/store.")
    mlflow_uri: str | None = Field(None, description="MLflow tracking URI. Default: the server of `dora up`, else SQLite in <home>.")
    prefect_api_url: str | None = Field(
        None, description="Prefect API (http://host:4200/api). Default: `dora up`'s, else an API in this process."
    )
    ray_address: str | None = Field(
        None, description="Address of a Ray dashboard (http://host:8265). Default: `dora up`'s, else an own head per command."
    )

    @property
    def root(self) -> Path:
        return self.home.expanduser().resolve()

    @property
    def store_uri(self) -> str:
        return self.store or str(self.root / "store")

    @property
    def prefect_home(self) -> Path:
        """PREFECT_HOME: its SQLite file is shared by the server of `dora up` and the API in this process."""
        return self.root / "prefect"

    @property
    def mlflow_database(self) -> str:
        """SQLite URI, shared by the MLflow server of `dora up` and direct clients."""
        return f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        """Artifact root of new experiments, written by the clients themselves."""
        return self.root / "mlartifacts"

    @property
    def log_folder(self) -> Path:
        """Logs of services and of failed jobs."""
        return self.root / "logs"

    @property
    def ray_folder(self) -> Path:
        """Parent of the folders of Ray heads: ``services`` for `dora up`'s, one per command else."""
        return self.root / "ray"

    @property
    def services_file(self) -> Path:
        return self.root / "services.json"

    def services(self) -> ServicesRecord:
        """What `dora up` recorded; empty if it never ran. Says nothing about being alive."""
        try:
            return ServicesRecord.model_validate(json.loads(self.services_file.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return ServicesRecord()

    def effective(self) -> Places:
        """See the module docstring. Looks at recorded processes only, sends no request."""
        up = self.services()
        prefect = up.url("prefect")
        head = None if self.ray_address else RayHead.attach(self.ray_folder / "services")
        ambient = {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN") if name in os.environ}
        return Places(
            mlflow_uri=self.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI") or up.url("mlflow") or self.mlflow_database,
            prefect_api_url=self.prefect_api_url or os.environ.get("PREFECT_API_URL") or (f"{prefect}/api" if prefect else None),
            ray_dashboard=self.ray_address or (head.dashboard_url if head else None),
            ray_environment=head.environment() if head else ambient if self.ray_address else {},
        )


def apply_environment(settings: Settings) -> Places:
    """Set the environment of Prefect, MLflow and Ray for this process and its children, *before* any of them is imported.

    What the user has set already stays. Returns :meth:`Settings.effective`.
    """
    places = settings.effective()
    if places.prefect_api_url:
        os.environ["PREFECT_API_URL"] = places.prefect_api_url
    os.environ["MLFLOW_TRACKING_URI"] = places.mlflow_uri
    os.environ["DORA_HOME"] = str(settings.root)  # children may run in another directory
    for name, value in tool_environment(settings).items():
        os.environ.setdefault(name, value)
    return places


def tool_environment(settings: Settings) -> dict[str, str]:
    """Environment variables every process of ours wants: data below ``home``, no telemetry, no pickles, short time-outs."""
    return {
        "PREFECT_HOME": str(settings.prefect_home),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # a dead server must not block a run for minutes
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 8 processes and 700 MB for features unused here
        # Artifact root of experiments created through SQLite directly; MLflow reads it nowhere else.
        "_MLFLOW_SERVER_ARTIFACT_ROOT": str(settings.mlflow_artifacts),
        "RAY_USAGE_STATS_ENABLED": "0",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

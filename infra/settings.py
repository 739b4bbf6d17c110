"""Settings of the place: where the store, the trackers and the Ray head are. Environment variables ``DORA_*``.

A run's configuration says *what* to compute and travels between machines; these say *where* and stay.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read once per process with ``Settings()``; every field may be set as ``DORA_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix="DORA_", extra="ignore")

    home: Path = Field(Path(".dora"), description="Folder of everything this project writes on this machine.")
    store: str | None = Field(None, description="Artifact store: path or pyarrow URI. Default: <home>/store.")
    mlflow_uri: str | None = Field(None, description="MLflow tracking URI. Default: the server of `dora up`, else SQLite in <home>.")
    ray_address: str | None = Field(None, description="Address of a Ray dashboard (http://host:8265). Default: `dora up`'s, else an own head per command.")

    @property
    def root(self) -> Path:
        return self.home.expanduser().resolve()

    @property
    def store_uri(self) -> str:
        return self.store or str(self.root / "store")

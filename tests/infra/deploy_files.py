"""Shared by the tests of infra/'s deployment files: the files, the lock's versions, and the known environment variables."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from infra.settings import Settings

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
NOT_YET_RUN = re.compile(r"[Nn]ot yet\s+(# )?run (under Docker|on a cluster)")

OURS = {f"DORA_{name.upper()}" for name in Settings.model_fields} | {"DORA_CACHE", "DORA_LOG_LEVEL", "DORA_HEALTH_URL"}
"""Variables that this project's code and image read."""
THEIRS = re.compile(
    r"AWS_(ENDPOINT_URL|DEFAULT_REGION|ACCESS_KEY_ID|SECRET_ACCESS_KEY)|PG(HOST|USER|PASSWORD|SSLMODE)|HF_(HOME|TOKEN)|DO_NOT_TRACK"
)
"""Variables of other libraries that are documented but not listed in one of their modules."""


def load(path: str) -> Any:
    return yaml.safe_load((INFRA / path).read_text(encoding="utf-8"))


def load_all(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((INFRA / path).read_text(encoding="utf-8")))


@cache
def locked() -> dict[str, str]:
    """``{package: version}`` of requirements.lock and the image's own requirements, names in lower case."""
    lines = (ROOT / "requirements.lock").read_text().splitlines() + (INFRA / "docker" / "requirements.txt").read_text().splitlines()
    pins = [line.split(";")[0].strip().split("==") for line in lines if "==" in line and not line.startswith("#")]
    assert len({name.lower() for name, _ in pins}) == len(pins), "a package is pinned twice"
    return {name.lower(): version for name, version in pins}


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Return the variables that nothing reads: neither this project's settings nor the installed Prefect, MLflow or Ray. A misspelt one
    silently switches authentication off."""
    import mlflow.environment_variables
    from prefect.settings import Settings as PrefectSettings
    from prefect.settings.legacy import _get_settings_fields

    prefect = set(_get_settings_fields(PrefectSettings))

    def known(name: str) -> bool:
        if name.startswith("PREFECT_"):
            return name in prefect
        if name.startswith("MLFLOW_"):
            return hasattr(mlflow.environment_variables, name)
        return name in OURS or bool(THEIRS.fullmatch(name)) or (name.startswith("RAY_") and name in _ray_sources())

    return sorted({name for name in names if not known(name)})


@cache
def _ray_sources() -> str:
    """Text of the modules in which Ray defines the variables that are set here."""
    root = Path(importlib.util.find_spec("ray").submodule_search_locations[0])  # type: ignore[union-attr, index]
    modules = [
        "exceptions.py",
        "_common/usage/usage_constants.py",
        "dashboard/modules/job/job_supervisor.py",
        "train/v2/_internal/constants.py",
    ]
    return "\n".join((root / module).read_text(encoding="utf-8") for module in modules)

"""The environment of child processes: what this project sets, and nothing that other servers left in this one.

Prefect, MLflow and Ray read hundreds of variables with their prefixes. In the environment of a command these may belong to another server
(its address, its password, its database), so a child gets a short list of them (:data:`PASSED_ON`) and the ones that this project sets. A
child also starts in its own empty folder (:func:`child_folder`): there Prefect finds neither the user's ``.env`` nor a ``prefect.toml``,
and ``PREFECT_PROFILES_PATH`` keeps it from ``~/.prefect``. Python's ``-P`` (:func:`python`; ``PYTHONSAFEPATH`` for its own children)
keeps the working folder off the import path.

A proxy cannot reach this machine's loopback, and clients of Prefect, MLflow and Ray follow ``HTTP_PROXY``: :func:`without_proxy` completes
``NO_PROXY``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from dora_core.environment import variable

PYTHON_SETTINGS = {"PYTHONSAFEPATH": "1", "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}
"""Safe path as of ``-P``; logs are UTF-8, whatever the user's terminal is."""
FOREIGN = ("PREFECT_", "MLFLOW_", "_MLFLOW_", "RAY_")
PASSED_ON = frozenset(
    {
        "RAY_worker_niceness",  # priority of Ray's workers, which Ray lowers to niceness 15
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY",
        "PREFECT_LOGGING_LEVEL",
        "PREFECT_LOGGING_SERVER_LEVEL",
        "MLFLOW_S3_ENDPOINT_URL",
        "MLFLOW_S3_IGNORE_TLS",
        "MLFLOW_S3_UPLOAD_EXTRA_ARGS",
        "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE",
    }
)
"""Variables of Prefect, MLflow and Ray that are about this machine or its artifacts, not about one server."""
MLFLOW_LOGIN = frozenset(
    {
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_INSECURE_TLS",
        "MLFLOW_TRACKING_SERVER_CERT_PATH",
        "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    }
)
"""For the MLflow server that DORA_MLFLOW_URI names."""
PREFECT_LOGIN = frozenset({"PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"})
RAY_LOGIN = frozenset({"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"})
"""For the cluster that DORA_RAY_ADDRESS names."""
PATHS = (
    "DORA_CACHE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "RAY_AUTH_TOKEN_PATH",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "TMPDIR",
)
"""Variables that may hold a path relative to the folder of the parent."""
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1", "127.0.0.2")
"""127.0.0.2 is the name that a Ray head gives its node."""


def python() -> tuple[str, str]:
    """Return the beginning of a child's command: this interpreter, which imports nothing from the working folder."""
    return sys.executable, "-P"


def child_environment(
    *own: Mapping[str, str], excluded: Iterable[str] = (), keep: Iterable[str] = (), hosts: Iterable[str] = ()
) -> dict[str, str]:
    """Return the environment of a child process.

    Args:
        own: variables to set, later ones win.
        excluded: further variables of this process that the child does not get.
        keep: further variables of Prefect, MLflow and Ray that it gets.
        hosts: further names of this machine that no proxy is asked for.
    """
    kept, left_out = PASSED_ON | set(keep), set(excluded)
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    inherited = {name: value for name, value in inherited.items() if name in kept or not name.startswith(FOREIGN)}
    inherited = {name: value for name, value in inherited.items() if value.strip() or not name.startswith("DORA_")}
    result = inherited | _absolute(inherited)
    for variables in (PYTHON_SETTINGS, *own):
        result |= variables
    return result | without_proxy(result, hosts)


def forget(names: Iterable[str]) -> None:
    """Remove variables from this process's environment."""
    for name in names:
        os.environ.pop(name, None)


def child_folder(home: Path) -> Path:
    """Create and return the empty folder below ``home`` in which children work."""
    folder = home / "work"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def without_proxy(environment: Mapping[str, str], hosts: Iterable[str] = ()) -> dict[str, str]:
    """Return ``NO_PROXY`` in both spellings, completed by the names of this machine's loopback and ``hosts``."""
    given = variable("no_proxy", environment), variable("NO_PROXY", environment)
    names = [name for text in given if text for name in map(str.strip, text.split(",")) if name]
    value = "*" if "*" in names else ",".join(dict.fromkeys([*names, *LOOPBACK_NAMES, *hosts]))
    return {"NO_PROXY": value, "no_proxy": value}


def _absolute(environment: Mapping[str, str]) -> dict[str, str]:
    """Paths of the parent's environment that hold in another folder, too; an empty part of PYTHONPATH, the working folder, is dropped."""
    paths = {name: value for name in PATHS if (value := variable(name, environment))}
    changed = {name: str(Path(value).expanduser().absolute()) for name, value in paths.items()}
    if (search := environment.get("PYTHONPATH")) is not None:
        changed["PYTHONPATH"] = os.pathsep.join(str(Path(part).absolute()) for part in search.split(os.pathsep) if part)
    return changed

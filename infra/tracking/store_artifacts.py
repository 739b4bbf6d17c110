"""MLflow artifact repository of models in the artifact store, ``dora-store:/align/<digest>/model?root=/path/of/the/store``.

A registered version's source names a model by its place *in* the store, so it stays valid when the home is renamed, or mounted elsewhere.
The store is looked for in this order: the store of this process (``DORA_STORE``, ``DORA_HOME``), the one beside the SQLite file of the
registry, and the one that the version was registered from. MLflow itself would download a folder that does not exist as an empty one, and
succeed; here a model that is not there, or damaged, is an error.

Declared in pyproject.toml as an entry point of MLflow, so that ``mlflow artifacts download`` finds it, too.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from dora_core.errors import DoraError, StoreError
from infra.databases import sqlite_file
from infra.settings import Settings
from infra.store.store import Store, split_uri

SCHEME = "dora-store"


def travelling(folder: str) -> str:
    """Return the source of a model folder ``<root>/<stage>/<digest>/model`` on this machine."""
    root, parts = split_uri(folder, 3)
    return f"{SCHEME}:/{'/'.join(map(quote, parts))}?root={quote(root)}"


def place_in_store(source: str) -> str:
    """Return ``"align/<digest>/model"``, the place that a source names."""
    return unquote(urlsplit(source).path).lstrip("/")


class StoreArtifacts(LocalArtifactRepository):  # type: ignore[misc]  # mlflow has no types
    """See the module docstring. The constructor's signature is MLflow's.

    Raises:
        MlflowException: the model is in none of the stores, or it is damaged.
    """

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None):
        super().__init__(_folder(artifact_uri, registry_uri or tracking_uri).as_uri(), tracking_uri, registry_uri)


def _folder(source: str, registry_uri: str | None) -> Path:
    relative = place_in_store(source)
    stage, digest, *rest = relative.split("/")
    roots = _roots(source, registry_uri)
    for root in roots:
        if not root.is_dir():
            continue
        try:
            store = Store(str(root))
            folder = store.local(relative)
            if not folder.is_dir() or not any(folder.iterdir()):
                continue
            if store.read_result(stage, digest) is not None:
                store.fetch(stage, digest)  # checks every file
        except (StoreError, OSError) as error:
            raise _refusal(f"{error.message}; {error.hint}" if isinstance(error, DoraError) else str(error)) from error
        return folder
    looked = ", ".join(map(str, roots))
    raise _refusal(
        f"{'/'.join([stage, digest[:12], *rest])} is in none of the stores {looked}; set DORA_STORE or DORA_HOME to where it lies now"
    )


def _roots(source: str, registry_uri: str | None) -> list[Path]:
    """Return the folders of the stores to look into, each once."""
    roots = []
    chosen = Settings().store_uri
    if "://" not in chosen:
        roots.append(Path(chosen).expanduser().resolve())
    if registry_uri and (database := sqlite_file(registry_uri)) is not None:
        roots.append(database.parent / "store")
    roots += [Path(root) for root in parse_qs(urlsplit(source).query).get("root", [])]
    return list(dict.fromkeys(roots))


def _refusal(message: str) -> MlflowException:
    return MlflowException(f"the registered model cannot be read: {message}", error_code=RESOURCE_DOES_NOT_EXIST)

"""The MLflow model registry: one version per trained model, by the URI of its files, with three aliases.

``champion`` serves, ``previous`` is what :func:`rollback` returns to, ``challenger`` was registered without a decision for it.
Every change of an alias leaves a tag on the version (``dora.promoted: 2026-01-31T12:00:00+00:00 by ann: gate passed``).

Where a version's files are: tag ``dora.model_uri``, always. The version's *source*, which ``models:/name@champion`` downloads, is that
URI too, except that an MLflow server refuses folders of its clients: small models are then uploaded to the run, and for large ones
the source is ``dora-store:<folder>``, which MLflow shows but cannot download (a clear error instead of a model without weights).

Left out: ``log_model`` flavours (they pickle, and import the world).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dora_core.errors import DoraError, ServiceError, did_you_mean
from infra.tracking import mlflow_client, user_name, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient

Alias = Literal["champion", "previous", "challenger"]

MODEL_URI = "dora.model_uri"
UPLOAD_LIMIT_BYTES = 2 * 1024**3  # about 100 MB/s to a server on the same machine


class RegistryError(DoraError):
    """The registry does not hold what was asked for, or refuses it."""


def register(uri: str, name: str, source_uri: str, run_id: str | None = None, tags: Mapping[str, str] | None = None) -> str:
    """Register a model folder and return its version; a folder that is registered already keeps its version.

    Args:
        uri: MLflow address, ``sqlite:///…`` or ``http(s)://…``.
        source_uri: folder with the model's files: an absolute path, or a remote URI (``s3://…``).
        run_id: MLflow id of the run that produced it; receives the files where the server cannot read them.

    Raises:
        ServiceError: MLflow is away. RegistryError: it refuses.
    """
    with _registry(uri) as client:
        _ensure_model(client, name)
        version = _find(client, name, source_uri)
        if version is None:
            source = _servable(client, uri, source_uri, run_id)
            version = client.create_model_version(name, source, run_id=run_id, tags={MODEL_URI: source_uri}, await_creation_for=0).version
        for key, value in (tags or {}).items():
            client.set_model_version_tag(name, str(version), key, value)
        return str(version)


def promote(uri: str, name: str, version: str, why: str = "") -> None:
    """``previous`` := champion, ``champion`` := version. Doing it again changes nothing; dying halfway loses nothing.

    Raises:
        RegistryError: there is no such version.
    """
    with _registry(uri) as client:
        versions = {str(v.version) for v in client.search_model_versions(f"name='{name}'")}
        if version not in versions:
            raise RegistryError(
                f"model {name!r} has no version {version!r} in {without_credentials(uri)}", hint=did_you_mean(version, versions)
            )
        current = _aliases(client, name)
        if current.get("champion") == version:
            return
        if "champion" in current:
            client.set_registered_model_alias(name, "previous", current["champion"])
        client.set_registered_model_alias(name, "champion", version)
        if current.get("challenger") == version:
            client.delete_registered_model_alias(name, "challenger")
        _audit(client, name, version, "promoted", why)


def challenge(uri: str, name: str, version: str, why: str = "") -> None:
    """``challenger`` := version, unless it is the champion already."""
    with _registry(uri) as client:
        current = _aliases(client, name)
        if version in (current.get("champion"), current.get("challenger")):
            return
        client.set_registered_model_alias(name, "challenger", version)
        _audit(client, name, version, "challenger", why)


def rollback(uri: str, name: str, why: str = "") -> str:
    """``champion`` := previous; returns its version. One step only: ``previous`` is then free until the next promotion.

    Raises:
        RegistryError: no such model, or nothing to return to.
    """
    with _registry(uri) as client:
        current = _aliases(client, name)
        champion, previous = current.get("champion"), current.get("previous")
        if previous is None or previous == champion:
            names = [model.name for model in client.search_registered_models()]
            if name not in names:
                raise RegistryError(
                    f"there is no model {name!r} in {without_credentials(uri)}",
                    hint=did_you_mean(name, names) if names else "nothing is registered there yet; `dora realign` registers",
                )
            raise RegistryError(
                f"model {name!r} has no previous version to return to (champion: version {champion or 'none'})",
                hint=f"name a version yourself: `dora promote {name} VERSION`, with one of "
                + ", ".join(sorted((str(v.version) for v in client.search_model_versions(f"name='{name}'")), key=int)),
            )
        client.set_registered_model_alias(name, "champion", previous)
        client.delete_registered_model_alias(name, "previous")
        _audit(client, name, previous, "restored", why)
        if champion is not None:
            _audit(client, name, champion, "rolled_back", why)
        return previous


def aliases(uri: str, name: str) -> dict[str, str]:
    """``{"champion": "3", "previous": "2"}``; empty for a model nobody registered."""
    with _registry(uri) as client:
        return _aliases(client, name)


def alias_tags(uri: str, name: str) -> dict[str, dict[str, str]]:
    """Tags of the version behind each alias."""
    with _registry(uri) as client:
        return {alias: dict(client.get_model_version(name, version).tags) for alias, version in _aliases(client, name).items()}


# ---------------------------------------------------------------------------------------------------------- mechanism


_client = functools.cache(mlflow_client)


@contextmanager
def _registry(uri: str) -> Iterator[MlflowClient]:
    """A client whose failures are ours."""
    address = without_credentials(uri)
    try:
        client = _client(uri)
        from mlflow.exceptions import MlflowException
    except Exception as error:  # a SQLite file that cannot be opened, a scheme MLflow does not know
        raise ServiceError(
            f"cannot open MLflow at {address}: {error}", hint="check DORA_MLFLOW_URI, or start the servers with `dora up`"
        ) from error
    try:
        yield client
    except MlflowException as error:
        message = without_credentials(str(error)).splitlines()[0]
        if error.get_http_status_code() >= 500:
            raise ServiceError(
                f"MLflow at {address} does not answer: {message}", hint="start it with `dora up`, or check DORA_MLFLOW_URI"
            ) from error
        raise RegistryError(f"MLflow at {address} refuses: {message}", hint="see the registered model's page in MLflow") from error


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _find(client: MlflowClient, name: str, source_uri: str) -> str | None:
    found = [v for v in client.search_model_versions(f"name='{name}'") if v.tags.get(MODEL_URI) == source_uri]
    return str(found[0].version) if found else None


def _servable(client: MlflowClient, uri: str, source_uri: str, run_id: str | None) -> str:
    """A source this registry accepts; see the module docstring."""
    if "://" in source_uri or not uri.startswith("http"):
        return source_uri
    folder = Path(source_uri)
    if run_id is None or sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) > UPLOAD_LIMIT_BYTES:
        return f"dora-store:{folder}"
    client.log_artifacts(run_id, str(folder), "model")
    return f"runs:/{run_id}/model"


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}


def _audit(client: MlflowClient, name: str, version: str, action: str, why: str) -> None:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    client.set_model_version_tag(name, version, f"dora.{action}", f"{when} by {user_name()}" + (f": {why}" if why else ""))

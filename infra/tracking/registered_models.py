"""Registered models by name, and their files on this machine: ``demo``, ``demo@champion``, ``demo:3``, and the same in MLflow's form,
``models:/demo@champion`` and ``models:/demo/3``. A name alone is its champion.

Files come from a store that has them, this process's first, and are checked there; else from MLflow, into ``<home>/models``.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from dora_core.errors import ConfigError, StoreError, did_you_mean
from infra.back_ends import without_credentials
from infra.settings import Settings
from infra.store.store import Store, split_uri
from infra.tracking import model_registry as registry
from infra.tracking.mlflow_client import mlflow_client
from infra.tracking.mlflow_import import load_mlflow
from infra.tracking.model_registry import MODEL_URI, Registered, RegistryError

PREFIX = "models:/"
FORM = re.compile(r"^(?P<model>[^@:/]+)(?:@(?P<alias>[^@:/]+)|[:/](?P<version>\d+))?$")
FORMS = "NAME, NAME@ALIAS or NAME:VERSION (or models:/NAME@ALIAS, models:/NAME/VERSION)"


def is_registered_name(text: str) -> bool:
    """Whether a model is named in MLflow's form, which no folder and no hub id has."""
    return text.startswith(PREFIX)


def find(uri: str, text: str) -> Registered:
    """Return the version that a name means.

    Args:
        uri: MLflow address.

    Raises:
        ConfigError: the text is no such name. RegistryError: there is no such model, alias or version; the message names what there is.
        ServiceError: MLflow does not answer.
    """
    match = FORM.match(text.removeprefix(PREFIX))
    if match is None:
        raise ConfigError(f"{text!r} does not name a registered model", hint=f"write {FORMS}")
    model, alias, version = match["model"], match["alias"], match["version"]
    alias = alias or (None if version else "champion")
    known = registry.versions(uri)
    of_model = [one for one in known if one.model == model]
    if not of_model:
        names = sorted({one.model for one in known})
        hint = did_you_mean(model, names) if names else "nothing is registered there yet; `dora realign` registers"
        raise RegistryError(f"there is no model {model!r} in {without_credentials(uri)}", hint=hint)
    for one in of_model:
        if alias in one.aliases if alias else one.version == version:
            return one
    aliases = {name: one.version for one in of_model for name in one.aliases}
    there = ", ".join([*(f"@{name} (version {number})" for name, number in aliases.items()), *(f":{one.version}" for one in of_model)])
    wanted = f"version under the alias {alias!r}" if alias else f"version {version}"
    hint = f"there are {there}" + (f"; `dora promote {model} VERSION` makes one the champion" if alias == "champion" else "")
    raise RegistryError(f"model {model!r} has no {wanted}", hint=hint)


def files(uri: str, version: Registered) -> Path:
    """Return a folder with the version's files; it is not to be changed.

    Raises:
        StoreError: its files are damaged. RegistryError: they are nowhere.
    """
    model_uri = version.tags.get(MODEL_URI, "")
    if model_uri.count("/") >= 3:
        root, (stage, digest, name) = split_uri(model_uri, 3)
        for place in dict.fromkeys((Settings().store_uri, root)):
            store = Store(place)
            if ("://" in place or Path(place).is_dir()) and store.is_done(stage, digest):
                return store.fetch(stage, digest) / name
    return _downloaded(uri, version)


def _downloaded(uri: str, version: Registered) -> Path:
    """Download a version through MLflow, once."""
    load_mlflow()
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    folder, name = Settings().root / "models" / version.model / version.version, f"{version.model} version {version.version}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:  # a download that is cut off must not be taken for the model
        try:
            place = str(Path(aside) / "found")
            Path(place).mkdir()
            # `models:/…` would be looked up in MLflow's default registry, a database that it makes in the working folder.
            source = mlflow_client(uri).get_model_version_download_uri(version.model, version.version)
            found = Path(download_artifacts(artifact_uri=source, dst_path=place, tracking_uri=uri, registry_uri=uri))
        except (MlflowException, OSError) as error:
            raise RegistryError(
                f"the files of {name} cannot be read: {str(error).splitlines()[0]}",
                hint="set DORA_STORE or DORA_HOME to the store that it was registered from",
            ) from error
        if not any(found.iterdir()):
            raise StoreError(f"MLflow has no file of {name}", hint="register the model again: `dora realign`")
        found.rename(folder)
    return folder

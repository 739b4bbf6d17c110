"""The MLflow model registry: one version per trained model, by the URI of its files, with three aliases.

``champion`` serves, :func:`rollback` returns to ``previous``, ``challenger`` was registered without a decision for it.

Every decision leaves its audit on the version: a tag for people (``dora.promoted: 2026-01-31T12:00:00+00:00 by ann: gate passed``), the
version's current state (``dora.decision``), and the whole history as JSON (``dora.audit``: action, when, who, why, and the digests of the
policy, its evaluation and the configuration that were decided about). Operations are idempotent; an interrupted one is completed on
retry. MLflow has no transactions: decisions from one machine take turns, and :func:`promote` reads the champion directly before it moves
the alias; two promotions from two machines within those milliseconds would both succeed.

Location of a version's files: always the tag ``dora.model_uri``, where they lay when they were registered. The version's *source*, which
``models:/name@champion`` downloads, must outlive a move: a remote URI as it is; for a folder its place in the store
(``infra/tracking/store_artifacts.py``), which is found wherever the store lies, or fails. A server is given a copy of a small model, as
artifacts of the run, which clients without this package can download.

A model folder on this machine becomes an MLflow model by small files beside the weights (``infra/tracking/mlflow_model.py``).
Left out: MLflow's own ``log_model``, which copies the weights.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from dora_core.errors import DoraError, ServiceError, did_you_mean
from infra.back_ends import without_credentials
from infra.databases import sqlite_file
from infra.settings import Settings
from infra.store.store import split_uri
from infra.tracking.mlflow_client import mlflow_client, user_name
from infra.tracking.mlflow_model import describe_model

if TYPE_CHECKING:
    from mlflow import MlflowClient


MODEL_URI = "dora.model_uri"
UPLOAD_LIMIT_BYTES = 2 * 1024**3  # about 100 MB/s to a server on the same machine
HISTORY = "dora.audit"
DECISIONS = {"restored": "promoted", "rejected": "refused"}
"""Action → decision, if it has another name."""
EVIDENCE = {"policy": "dora.digest", "evaluation": "dora.evaluation", "config": "dora.config"}
"""Key in the history → tag of the version, set at its registration."""


class Decision(TypedDict):
    """A decision about a version. ``policy``, ``evaluation``, ``config``: digests of its evidence, where the version has these tags."""

    action: str
    when: str
    who: str
    why: str
    policy: NotRequired[str]
    evaluation: NotRequired[str]
    config: NotRequired[str]


ANY = "any champion"


class RegistryError(DoraError):
    """The registry does not hold the requested entry, or refuses the request."""


class RegistryMoved(RegistryError):
    """Another version became champion meanwhile; a retry compares with the new one."""

    retryable_by_default = True


def register(uri: str, name: str, source_uri: str, run_id: str | None = None, tags: Mapping[str, str] | None = None) -> str:
    """Register a model folder and return its version; a folder that is registered already keeps its version.

    Args:
        uri: MLflow address, ``sqlite:///…`` or ``http(s)://…``.
        source_uri: folder with the model's files: an absolute path, or a remote URI (``s3://…``).
        run_id: MLflow id of the run that produced it; receives the files if the server cannot read them.

    Raises:
        ServiceError: MLflow is away. RegistryError: it refuses.
    """
    with _registry(uri) as client:
        _ensure_model(client, name)
        new_files = [] if "://" in source_uri else describe_model(Path(source_uri))
        version = _find(client, name, source_uri)
        if version is None:
            source = _servable(client, uri, source_uri, run_id)
            with _in_turn(uri):
                version = _find(client, name, source_uri) or _create(client, name, source, source_uri, run_id)
        elif new_files:
            _complete(client, name, version, new_files)
        for key, value in (tags or {}).items():
            client.set_model_version_tag(name, str(version), key, value)
        return str(version)


def promote(uri: str, name: str, version: str, why: str = "", *, who: str | None = None, instead_of: str | None = ANY) -> None:
    """Set ``previous`` := champion, ``champion`` := version. Idempotent; an interrupted promotion is completed on retry.

    Args:
        who: name of the person; None = the user of this process.
        instead_of: the champion at the time of the decision; None = there was none, :data:`ANY` = any.

    Raises:
        RegistryError: there is no such version. RegistryMoved: the champion is neither ``instead_of`` nor ``version``.
    """
    with _registry(uri) as client, _in_turn(uri):
        _check_version(client, uri, name, version)
        current = _aliases(client, name)
        champion = current.get("champion")
        if champion == version and _last_action(client, name, version) in ("promoted", "restored"):
            return
        if champion != version and instead_of not in (ANY, champion):
            now = f"{_spoken(champion)} is" if champion else "none is"
            raise RegistryMoved(
                f"version {version} of {name} was to replace {_spoken(instead_of)}, but {now} champion now",
                hint=f"run again to look at it, or: dora promote {name} {version} --why …",
            )
        if champion != version:
            if champion is not None:
                client.set_registered_model_alias(name, "previous", champion)
            client.set_registered_model_alias(name, "champion", version)
        if current.get("challenger") == version:
            client.delete_registered_model_alias(name, "challenger")
        _audit(client, name, version, "promoted", why, who)


def challenge(uri: str, name: str, version: str, why: str = "") -> None:
    """Set ``challenger`` := version, unless it is the champion already."""
    with _registry(uri) as client, _in_turn(uri):
        current = _aliases(client, name)
        if current.get("champion") == version:
            return
        if current.get("challenger") == version and _last_action(client, name, version) == "challenger":
            return
        client.set_registered_model_alias(name, "challenger", version)
        _audit(client, name, version, "challenger", why)


def reject(uri: str, name: str, version: str, why: str, *, who: str | None = None) -> None:
    """Remove the alias ``challenger`` from the version and record the reason. Idempotent.

    Raises:
        RegistryError: there is no such version, or it is the champion.
    """
    with _registry(uri) as client, _in_turn(uri):
        _check_version(client, uri, name, version)
        current = _aliases(client, name)
        if current.get("champion") == version:
            raise RegistryError(f"version {version} of {name} is the champion", hint=f"return to the one before it: dora rollback {name}")
        if current.get("challenger") == version:
            client.delete_registered_model_alias(name, "challenger")
        elif _last_action(client, name, version) == "rejected":
            return
        _audit(client, name, version, "rejected", why, who)


def rollback(uri: str, name: str, why: str = "") -> str:
    """Set ``champion`` := previous and return its version. One step only: ``previous`` is then free until the next promotion.

    Raises:
        RegistryError: no such model, or nothing to return to.
    """
    with _registry(uri) as client, _in_turn(uri):
        current = _aliases(client, name)
        champion, previous = current.get("champion"), current.get("previous")
        again = previous is not None and previous == champion and _last_action(client, name, previous) == "restored"
        if previous is None or (previous == champion and not again):
            names = [model.name for model in client.search_registered_models()]
            if name not in names:
                raise RegistryError(
                    f"there is no model {name!r} in {without_credentials(uri)}",
                    hint=did_you_mean(name, names) if names else "nothing is registered there yet; `dora realign` registers",
                )
            raise RegistryError(
                f"model {name!r} has no previous version to return to (champion: version {champion or 'none'})",
                hint=f"name a version: `dora promote {name} VERSION`, with one of "
                + ", ".join(sorted((str(v.version) for v in client.search_model_versions(f"name='{name}'")), key=int)),
            )
        if not again:  # the audit first: once the alias is moved, the former champion is unknown
            if champion is not None and _last_action(client, name, champion) != "rolled_back":
                _audit(client, name, champion, "rolled_back", why)
            _audit(client, name, previous, "restored", why)
            client.set_registered_model_alias(name, "champion", previous)
        if current.get("challenger") == previous:
            client.delete_registered_model_alias(name, "challenger")
        client.delete_registered_model_alias(name, "previous")
        return previous


def aliases(uri: str, name: str) -> dict[str, str]:
    """Return ``{"champion": "3", "previous": "2"}``; empty for an unknown model."""
    with _registry(uri) as client:
        return _aliases(client, name)


def alias_tags(uri: str, name: str) -> dict[str, dict[str, str]]:
    """Return the tags of the version behind each alias; empty for an unknown model, or a SQLite file that does not exist."""
    if _is_unborn(uri):
        return {}
    with _registry(uri) as client:
        return {alias: dict(client.get_model_version(name, version).tags) for alias, version in _aliases(client, name).items()}


@dataclass(frozen=True)
class Registered:
    """A version of a registered model, the aliases that point to it, and its tags."""

    model: str
    version: str
    aliases: tuple[str, ...]
    tags: dict[str, str]


def versions(uri: str) -> list[Registered]:
    """List all versions of all models; empty for a SQLite file that does not exist (a request would create it)."""
    if _is_unborn(uri):
        return []
    with _registry(uri) as client:
        models = _pages(client.search_registered_models, 1000)
        named = {(m.name, str(v)): tuple(sorted(a for a, w in m.aliases.items() if w == v)) for m in models for v in m.aliases.values()}
        found = _pages(client.search_model_versions, 10_000)
        return [Registered(v.name, str(v.version), named.get((v.name, str(v.version)), ()), dict(v.tags)) for v in found]


def describe(uri: str, name: str, version: str, decision: str, reasons: str, summary: str = "") -> None:
    """Record the version's decision and its reasons, also if no alias moved.

    Args:
        summary: the evaluation in one sentence, for the version's description.
    """
    with _registry(uri) as client:
        if summary:
            client.set_model_version_tag(name, version, "dora.summary", summary)
        client.set_model_version_tag(name, version, "dora.decision", decision)
        client.set_model_version_tag(name, version, "dora.reasons", reasons)
        _write_page(client, name, version)


def history(uri: str, name: str, version: str) -> list[Decision]:
    """Return the decisions about a version, oldest first."""
    with _registry(uri) as client:
        return _history(client, name, version)


# ---------------------------------------------------------------------------------------------------------- mechanism


_client = functools.cache(mlflow_client)


def _is_unborn(uri: str) -> bool:
    """Whether a request would create the database."""
    file = sqlite_file(uri)
    return file is not None and not file.exists()


def _pages(search: Callable[..., Any], size: int) -> list[Any]:
    """Collect all pages of a ``search`` of MLflow's."""
    page = search(max_results=size)
    found = list(page)
    while page.token:
        page = search(max_results=size, page_token=page.token)
        found += page
    return found


@contextmanager
def _registry(uri: str) -> Iterator[MlflowClient]:
    """Yield a client whose failures are translated to ServiceError and RegistryError."""
    address = without_credentials(uri)
    try:
        client = _client(uri)
        from mlflow.exceptions import MlflowException
    except Exception as error:  # a SQLite file that cannot be opened, an unknown scheme
        raise ServiceError(
            f"cannot open MLflow at {address}: {error}", hint="check DORA_MLFLOW_URI, or start the servers with `dora up`"
        ) from error
    try:
        yield client
    except MlflowException as error:
        message = without_credentials(str(error)).splitlines()[0]
        if error.get_http_status_code() in (401, 403):
            raise RegistryError(
                f"MLflow at {address} refuses us: {message}", hint="set DORA_AUTH to its user:password, of a user who may edit the model"
            ) from error
        if error.get_http_status_code() >= 500:
            raise ServiceError(
                f"MLflow at {address} does not answer: {message}", hint="start it with `dora up`, or check DORA_MLFLOW_URI"
            ) from error
        raise RegistryError(f"MLflow at {address} refuses: {message}", hint="see the registered model's page in MLflow") from error


@contextmanager
def _in_turn(uri: str) -> Iterator[None]:
    """Serialise decisions of the processes of this machine; the kernel frees the lock of a killed one."""
    file = sqlite_file(uri)
    folder = Settings().root if file is None else file.parent
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def place_of(model_uri: str) -> str:
    """Return the identity of a model's files: a remote URI, or the place of a folder in its store, ``align/<digest>/model``."""
    return model_uri if "://" in model_uri or model_uri.count("/") < 3 else "/".join(split_uri(model_uri, 3)[1])


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _find(client: MlflowClient, name: str, source_uri: str) -> str | None:
    """Return the first version of these files, None if there is none; in a store on this machine also after it was moved."""
    place = place_of(source_uri)
    versions = client.search_model_versions(f"name='{name}'")
    found = [int(v.version) for v in versions if place_of(v.tags.get(MODEL_URI, "")) == place]
    return str(min(found)) if found else None


def _create(client: MlflowClient, name: str, source: str, source_uri: str, run_id: str | None) -> str:
    """Create a version, once: MLflow's client repeats a request whose answer was lost, and the server would register the files twice."""
    created = client.create_model_version(name, source, run_id=run_id, tags={MODEL_URI: source_uri}, await_creation_for=0)
    first = _find(client, name, source_uri)
    if first is not None and first != str(created.version):
        client.delete_model_version(name, str(created.version))
        return first
    return str(created.version)


def _servable(client: MlflowClient, uri: str, source_uri: str, run_id: str | None) -> str:
    """Return a source that this registry accepts; see the module docstring."""
    if "://" in source_uri:
        return source_uri
    from infra.tracking.store_artifacts import travelling

    folder = Path(source_uri)
    is_large = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) > UPLOAD_LIMIT_BYTES
    if not uri.startswith("http") or run_id is None or is_large:
        return travelling(source_uri)
    client.log_artifacts(run_id, str(folder), "model")
    return f"runs:/{run_id}/model"


def _complete(client: MlflowClient, name: str, version: str, files: list[Path]) -> None:
    """Upload new files of a model to the server that has a copy of it."""
    place = re.fullmatch(r"runs:/([^/]+)/(.+)", client.get_model_version(name, version).source)
    if place is not None:
        for path in files:
            client.log_artifact(place[1], str(path), place[2])


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}


def _check_version(client: MlflowClient, uri: str, name: str, version: str) -> None:
    versions = {str(v.version) for v in client.search_model_versions(f"name='{name}'")}
    if version not in versions:
        raise RegistryError(
            f"model {name!r} has no version {version!r} in {without_credentials(uri)}", hint=did_you_mean(version, versions)
        )


def _spoken(version: str | None) -> str:
    return "no champion" if version is None else f"version {version}"


def _history(client: MlflowClient, name: str, version: str) -> list[Decision]:
    past: list[Decision] = json.loads(client.get_model_version(name, version).tags.get(HISTORY, "[]"))
    return past


def _last_action(client: MlflowClient, name: str, version: str) -> str | None:
    past = _history(client, name, version)
    return past[-1]["action"] if past else None


def _audit(client: MlflowClient, name: str, version: str, action: str, why: str, who: str | None = None) -> None:
    tags = client.get_model_version(name, version).tags
    when, who = datetime.now(UTC).isoformat(timespec="seconds"), who or user_name()
    evidence = {what: tags[tag] for what, tag in EVIDENCE.items() if tag in tags}
    past = [*json.loads(tags.get(HISTORY, "[]")), {"action": action, "when": when, "who": who, "why": why} | evidence]
    for tag, value in (
        (f"dora.{action}", f"{when} by {who}" + (f": {why}" if why else "")),
        ("dora.decision", DECISIONS.get(action, action)),
        (HISTORY, json.dumps(past, ensure_ascii=False)),
    ):
        client.set_model_version_tag(name, version, tag, value)
    _write_page(client, name, version)


def _write_page(client: MlflowClient, name: str, version: str) -> None:
    """Write the version's description, shown first on its page: decision, reasons and history from the tags."""
    tags = client.get_model_version(name, version).tags
    past = [f"- {e['when']}: {e['action'].replace('_', ' ')} by {e['who']}" for e in json.loads(tags.get(HISTORY, "[]"))]
    reasons = [f"- {reason}" for reason in tags.get("dora.reasons", "").split("; ") if reason]
    summary = tags.get("dora.summary", "")
    paragraphs = [f"**{tags.get('dora.decision', 'registered')}**", summary, "\n".join(reasons), "\n".join(past)]
    client.update_model_version(name, version, description="\n\n".join(filter(None, paragraphs)))

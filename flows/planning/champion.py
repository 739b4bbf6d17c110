"""The registered model that a new policy is compared with: the registry's champion, as a stage of this store."""

from __future__ import annotations

from collections.abc import Callable

from dora_core.errors import ConfigError, ServiceError
from infra.store.store import Store
from infra.tracking import model_registry as registry
from tasks.runtime.spec import StageRef


def champion_to_continue(mlflow_uri: str, model_name: str, store: Store) -> StageRef | None:
    """Return the policy behind the alias ``champion``; None where there is none yet.

    Unlike a comparison, a start is not left out: a run that was to continue from a champion never starts from something else unasked.

    Raises:
        ServiceError: the registry does not answer. ConfigError: the champion is not in this store.
    """
    tags = registry.alias_tags(mlflow_uri, model_name).get("champion")
    if tags is None:
        return None
    stage, digest = tags.get("dora.stage"), tags.get("dora.digest")
    if not stage or not digest or not store.is_done(stage, digest):
        raise ConfigError(
            f"policy.start is champion, and the files of {model_name}'s champion are not in {store.uri}",
            hint="name the store of its run in DORA_STORE, or train from the base: policy.start: base",
        )
    return StageRef(stage=stage, digest=digest)


def champions(mlflow_uri: str, model_name: str, store: Store, note: Callable[[str], None]) -> list[StageRef]:
    """Return the policies behind the aliases ``champion`` and ``previous``, without those that are not in this store.

    If the registry does not answer, the run continues without the comparison.

    Args:
        note: callback for the reason why a policy is missing.
    """
    try:
        tags = registry.alias_tags(mlflow_uri, model_name)
    except ServiceError as error:
        note(f"the champion is not compared with: {error.message}")
        return []
    found = []
    for alias in ("champion", "previous"):
        if alias not in tags:
            continue
        stage, digest = tags[alias].get("dora.stage"), tags[alias].get("dora.digest")
        if stage and digest and store.is_done(stage, digest):
            found.append(StageRef(stage=stage, digest=digest))
        elif alias == "champion":
            note(f"the champion of {model_name} is not compared with: its files are not in {store.uri}")
    return found

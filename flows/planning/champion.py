"""The registered model that a new policy is compared with: the registry's champion, as a stage of this store."""

from __future__ import annotations

from collections.abc import Callable

from dora_core.errors import ServiceError
from infra.store.store import Store
from infra.tracking import model_registry as registry
from tasks.runtime.spec import StageRef


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

"""The start of a run with ``policy.start: champion``: the champion, the records it has learned from, and the base of its lineage.

Every champion's stage names the model it started from, so its lineage is known from the store. The base is the supervised start at its
root, or the model itself: evaluation compares with it, and the gate's limit on KL counts from it, however many nights lie between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dora_core.config.method import ModelConfig
from dora_core.errors import ConfigError
from infra.store.store import Store
from tasks.runtime.spec import StageRef


@dataclass(frozen=True)
class Continuation:
    """Where a run continues.

    Attributes:
        champion: the policy that alignment starts from, and its reference.
        earlier: the records that its run was given.
        base: the supervised start of its lineage; None: the model itself.
    """

    champion: StageRef
    earlier: StageRef
    base: StageRef | None


def continuation(
    champion: StageRef | None, given: StageRef, model: ModelConfig, store: Store, note: Callable[[str], None]
) -> Continuation | None:
    """Find where a run on the records ``given`` continues; None: it starts from the base, with the reason in ``note``.

    A champion that was trained on these very records is not trained on them again: the run then repeats the champion's own, which the
    store has, or differs from it in its settings only.

    Args:
        champion: of the registry; None if there is none yet.
        model: the configured policy.

    Raises:
        ConfigError: the champion's lineage is not in the store, or it is of another model.
    """
    if champion is None:
        note("policy.start is champion, and there is no champion yet: this run starts from the base")
        return None
    spec = _spec(store, champion)
    if spec["model"] != model.model_dump(mode="json"):
        raise ConfigError(
            f"the champion was trained from {_named(spec['model'])}, and policy names {_named(model.model_dump(mode='json'))}",
            hint="train once from the new base with policy.start: base; when it is champion, runs can continue from it",
        )
    earlier = _given(store, spec)
    if earlier != given:
        return Continuation(champion, earlier, _base(store, champion))
    if spec["records"]["stage"] != "replay" or spec["start"] is None:
        note("the champion was trained on these very records, from the base: so does this run")
        return None
    note("the champion was trained on these very records: this run starts where the champion's did")
    before = _ref(spec["start"])
    return Continuation(before, _ref(_spec(store, _ref(spec["records"]))["earlier"]), _base(store, before))


def _given(store: Store, spec: dict[str, Any]) -> StageRef:
    """The records of ``ingest`` behind a policy's training records: mixed for rounds, or replayed."""
    records = _ref(spec["records"])
    while records.stage != "ingest":
        records = _ref(_spec(store, records)["records"])
    _spec(store, records)  # its rows are read
    return records


def _base(store: Store, policy: StageRef) -> StageRef | None:
    """The first policy of a lineage, if that is a supervised start."""
    while (start := _spec(store, policy)["start"]) is not None:
        policy = _ref(start)
    return policy if policy.stage == "sft" else None


def _spec(store: Store, ref: StageRef) -> dict[str, Any]:
    result = store.read_result(ref.stage, ref.digest) if store.is_done(ref.stage, ref.digest) else None
    if result is None:
        raise ConfigError(
            f"the champion cannot be continued: {ref.stage}/{ref.digest[:12]} of its lineage is not in {store.uri}",
            hint="train once from the base with policy.start: base, or name the store of the champion's run in DORA_STORE",
        )
    return dict(result["spec"])


def _ref(value: dict[str, str]) -> StageRef:
    return StageRef.model_validate(value)


def _named(model: dict[str, Any]) -> str:
    pinned = model["revision"] or model["content"]
    size = f" of width {model['hidden_size']} and depth {model['layers']}" if model["source"] == "tiny" else ""
    return f"{model['source']}{f' at {pinned[:12]}' if pinned else ''}{size}"

"""Stage ``promote``: the aligned policy enters the model registry, and becomes its champion if the gate let it through.

Input: the verdict of an ``evaluate`` stage's gate, and the policy it judged. Output: no file; a version of the registered model
and its aliases.
Decision: gate passed and mode auto → *promoted* (alias ``champion``; the old one becomes ``previous``); gate passed and mode never →
*challenger*; gate failed → *refused*: registered without an alias, so that the registry shows what was refused and why, and a
person may still promote it by hand.
Guarantee: the same policy is registered once, however often this runs. A finished promotion is not repeated: after ``dora rollback``
the same data does not bring the model back.
Cost: well under a second; a copy of the model's files where the registry is a server (``infra/registry.py``).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dora_core.config import NAME_PATTERN, StrictModel
from infra import registry
from tasks.stage import NotInDigest, StageContext, StageOutput, StageRef, StageSpec, main


class Tracking(StrictModel):
    """Where the registry is and which MLflow run produced the model."""

    uri: str = Field(min_length=1, description="MLflow address: sqlite:///… or http(s)://…")
    run_id: str | None = Field(
        None, description="MLflow id of this stage's run; receives the model's files where the registry is a server."
    )


class Spec(StageSpec):
    """See the module docstring. ``tracking`` is filled in when the stage runs; planning needs only the digest."""

    stage: ClassVar[str] = "promote"
    placement: ClassVar[Literal["job", "local"]] = "local"

    evaluation: StageRef
    policy: StageRef
    model_name: str = Field(pattern=NAME_PATTERN)
    mode: Literal["auto", "never"] = "auto"
    tracking: Annotated[Tracking | None, NotInDigest] = None


def run(spec: Spec, context: StageContext) -> StageOutput:
    """Decide, register, set aliases.

    Raises:
        ServiceError: MLflow is away (retryable). RegistryError: it refuses.
    """
    assert spec.tracking is not None, "promote was started without the address of a registry"
    decision, reasons = decide(context.result(spec.evaluation)["facts"]["gate"], spec.mode)
    uri, name, why = spec.tracking.uri, spec.model_name, "; ".join(reasons)
    tags = {"dora.stage": spec.policy.stage, "dora.digest": spec.policy.digest, "dora.evaluation": spec.evaluation.digest}
    model = f"{context.store.uri}/{spec.policy.stage}/{spec.policy.digest}/model"
    version = registry.register(uri, name, model, spec.tracking.run_id, tags | {"dora.decision": decision, "dora.reasons": why})
    if decision == "promoted":
        registry.promote(uri, name, version, why)
    elif decision == "challenger":
        registry.challenge(uri, name, version, why)
    context.log.info("%s version %s: %s (%s)", name, version, decision, why)
    facts = {"decision": decision, "model_name": name, "version": version, "aliases": registry.aliases(uri, name), "reasons": reasons}
    return StageOutput(rows=1, metrics={"promoted": float(decision == "promoted")}, facts=facts)


def decide(gate: dict[str, Any], mode: Literal["auto", "never"]) -> tuple[Literal["promoted", "challenger", "refused"], list[str]]:
    """The decision and its reasons: the rules that failed, or the rules that were met."""
    failed = [rule["message"] for rule in gate["rules"] if not rule["passed"]]
    if not gate["passed"]:
        return "refused", failed
    met = [rule["message"] for rule in gate["rules"]]
    return ("promoted", met) if mode == "auto" else ("challenger", [*met, "promotion.mode is never"])


if __name__ == "__main__":
    main(Spec, run)

"""Stage ``promote``: the aligned policy enters the model registry, and becomes its champion if the gate and, where one is asked, a person
let it through.

Input: the verdict of an ``evaluate`` stage's gate, and the policy it judged. Output: no file; a version of the registered model
and its aliases. Decision:

- gate failed → *refused*: registered without an alias, so that the registry shows what was refused and why, and a person may still
  promote it by hand;
- gate passed and mode auto → *promoted* (alias ``champion``; the old one becomes ``previous``);
- mode never → *challenger*;
- mode ask → a person decides, in the answer that the flow got (``flows/running/approval.py``) or by hand (`dora promote`, `dora reject`):
  approved → *promoted*, rejected → *refused*; until then *challenger*.

An evaluation counts against the champion it saw. If another one is champion now, or one is and it saw none, the policy stays
*challenger*; the next run, whose plan compares with that champion, evaluates anew. (Where ``compare`` is off, the gate alone decides.) So
does an answer: one given for another champion than today's is not used. While nobody has decided or the comparison is outdated, the
stage *waits*: it is not done, and the next run runs it again.

Guarantee: the same policy is registered once, however often this runs and wherever it was killed. A finished decision is not repeated:
after ``dora rollback`` the same data does not bring the model back, and what was rejected stays rejected.
Cost: well under a second; a copy of the model's files where the registry is a server (``infra/tracking/model_registry.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dora_core.strict_model import NAME_PATTERN, StrictModel
from infra.store.store import Store
from infra.tracking import model_registry as registry
from tasks.runtime.descriptor import Event, Stage, StageResult
from tasks.runtime.stage import NotInDigest, StageContext, StageOutput, StageRef, StageSpec

Mode = Literal["auto", "ask", "never"]


class Tracking(StrictModel):
    """Where the registry is and which MLflow run produced the model."""

    uri: str = Field(min_length=1, description="MLflow address: sqlite:///… or http(s)://…")
    run_id: str | None = Field(
        None, description="MLflow id of this stage's run; receives the model's files where the registry is a server."
    )


class Answer(StrictModel):
    """What a person decided, and what they were shown."""

    approve: bool
    who: str = Field(min_length=1)
    why: str
    champion: str | None = Field(description="Version that was champion when they were asked; null = none.")


class Spec(StageSpec):
    """See the module docstring. ``tracking`` and ``answer`` are filled in when the stage runs; planning needs only the digest.

    Attributes:
        config: digest of the whole configuration, for the audit.
        compares: a champion is to be compared with before it is replaced without being asked.
    """

    stage: ClassVar[str] = "promote"
    placement: ClassVar[Literal["job", "local"]] = "local"

    evaluation: StageRef
    policy: StageRef
    model_name: str = Field(pattern=NAME_PATTERN)
    mode: Mode = "auto"
    config: Annotated[str, NotInDigest] = ""
    compares: Annotated[bool, NotInDigest] = False
    tracking: Annotated[Tracking | None, NotInDigest] = None
    answer: Annotated[Answer | None, NotInDigest] = None

    def is_done(self, store: Store) -> bool:
        """A decision is there; what still waits for one is no result."""
        result = store.read_result(self.stage, self.digest())
        return result is not None and not result["facts"].get("waits") and super().is_done(store)


@dataclass(frozen=True)
class Verdict:
    """A decision, its reasons, and what is still to be done about it.

    Attributes:
        waits: for whom the decision is not final: a ``person``, or a ``comparison`` with today's champion.
        who, words: the person who decided, and their reason.
        is_new: the aliases are still to be moved; False for what the registry knows already.
    """

    decision: Literal["promoted", "challenger", "refused"]
    reasons: list[str]
    waits: Literal["person", "comparison"] | None = None
    who: str | None = None
    words: str = ""
    is_new: bool = True

    def but(self, reason: str, **changes: Any) -> Verdict:
        return replace(self, reasons=[reason, *self.reasons], **changes)


def run(spec: Spec, context: StageContext) -> StageOutput:
    """Decide, register, set aliases.

    Raises:
        ServiceError: MLflow is away (retryable). RegistryError: it refuses. RegistryMoved: the champion changed in this very moment
            (retryable).
    """
    assert spec.tracking is not None, "promote was started without the address of a registry"
    uri, name = spec.tracking.uri, spec.model_name
    tags = {"dora.stage": spec.policy.stage, "dora.digest": spec.policy.digest, "dora.evaluation": spec.evaluation.digest}
    model = f"{context.store.uri}/{spec.policy.stage}/{spec.policy.digest}/model"
    version = registry.register(uri, name, model, spec.tracking.run_id, tags | {"dora.config": spec.config})
    champion = registry.aliases(uri, name).get("champion")

    verdict = decide(context.result(spec.evaluation)["facts"]["gate"], spec.mode)
    if verdict.decision == "promoted":
        verdict = by_hand(spec, registry.history(uri, name, version), verdict)
    if verdict.decision == "promoted" and verdict.is_new:
        if champion == version:  # since an attempt that ended halfway, or an earlier evaluation
            if spec.answer is not None and spec.answer.approve:
                verdict = by_answer(spec.answer, spec.answer.champion, verdict)
        elif unseen := _unseen(spec, context, version, champion):
            verdict = verdict.but(unseen, decision="challenger", waits="comparison")
        elif spec.mode == "ask":
            verdict = by_answer(spec.answer, champion, verdict)

    why = "; ".join(verdict.reasons)
    if verdict.is_new:
        if verdict.decision == "promoted":
            registry.promote(uri, name, version, verdict.words or why, who=verdict.who, instead_of=champion)
        elif verdict.decision == "challenger":
            registry.challenge(uri, name, version, why)
        elif verdict.who is not None:
            registry.reject(uri, name, version, verdict.words, who=verdict.who)
    registry.describe(uri, name, version, verdict.decision, why)
    context.log.info("%s version %s: %s (%s)", name, version, verdict.decision, why)

    facts = {"decision": verdict.decision, "model_name": name, "version": version, "reasons": verdict.reasons, "waits": verdict.waits}
    past = registry.history(uri, name, version)
    facts |= {"champion_before": champion, "aliases": registry.aliases(uri, name), "audit": past[-1] if past else None}
    return StageOutput(rows=1, metrics={"promoted": float(verdict.decision == "promoted")}, facts=facts)


def decide(gate: dict[str, Any], mode: Mode) -> Verdict:
    """What the gate and the mode say, and the rules that failed, or those that were met."""
    if not gate["passed"]:
        return Verdict("refused", [rule["message"] for rule in gate["rules"] if not rule["passed"]])
    met = [rule["message"] for rule in gate["rules"]]
    return Verdict("challenger", [*met, "promotion.mode is never"]) if mode == "never" else Verdict("promoted", met)


def by_hand(spec: Spec, history: list[dict[str, Any]], verdict: Verdict) -> Verdict:
    """``verdict``, unless people have decided about this evaluation of the policy already: their last word counts.

    Args:
        history: of the version, oldest first (``infra/tracking/model_registry.py``).
    """
    for entry in reversed(history) if spec.mode == "ask" else ():
        if entry["action"] != "challenger" and entry.get("evaluation") == spec.evaluation.digest:
            reason = f"{entry['action'].replace('_', ' ')} by {entry['who']}: {entry['why'] or 'no reason given'}"
            decision = "promoted" if entry["action"] in ("promoted", "restored") else "refused"
            return verdict.but(reason, decision=decision, who=entry["who"], is_new=False)
    return verdict


def by_answer(answer: Answer | None, champion: str | None, verdict: Verdict) -> Verdict:
    """A passed gate's ``verdict`` as a person answered, who was shown the champion of their time."""
    if answer is None:
        return verdict.but("nobody has decided yet", decision="challenger", waits="person")
    if answer.champion != champion:
        moved = f"{answer.who} answered while another version was champion than {champion or 'none'}: to be asked again"
        return verdict.but(moved, decision="challenger", waits="person")
    said = {"who": answer.who, "words": answer.why}
    if answer.approve:
        return verdict.but(f"approved by {answer.who}: {answer.why}", **said)
    return verdict.but(f"rejected by {answer.who}: {answer.why}", decision="refused", **said)


def _unseen(spec: Spec, context: StageContext, version: str, champion: str | None) -> str | None:
    """Why ``version`` may not replace today's champion on the strength of its evaluation; None where it may."""
    if champion is None:
        return None
    tags, seen = registry.alias_tags(spec.tracking.uri, spec.model_name)["champion"], champion_seen(spec, context)
    stage, now = tags.get("dora.stage"), tags.get("dora.digest")
    is_fine = (spec.mode == "ask" or not spec.compares) if seen is None else seen == now
    if is_fine:  # whoever is asked is shown the champion of that moment
        return None
    if stage and now and context.store.is_done(stage, now):
        return f"version {champion} became champion after the comparison; run again to be compared with it"
    files = f"its files are not in {context.store.uri}"
    return f"version {champion} is champion and cannot be compared with: {files}; to replace it: dora promote {spec.model_name} {version}"


def champion_seen(spec: Spec, context: StageContext) -> str | None:
    """Digest of the champion that the evaluation compared the policy with; None where it compared with none."""
    comparison = context.result(spec.evaluation)["spec"]["comparison"]
    samples = context.result(StageRef(**comparison))["spec"]["champion_samples"] if comparison else None
    return context.result(StageRef(**samples))["spec"]["policy"]["digest"] if samples else None


def headline(result: StageResult[Any]) -> str:
    return f"{result.facts.decision}, {result.facts.model_name} version {result.facts.version}"


def event(result: StageResult[Any], store: Store) -> Event | None:
    """A model became champion or was refused."""
    facts = result.facts
    if facts.decision not in ("promoted", "refused"):
        return None
    what = f"version {facts.version} of {facts.model_name} {'is champion' if facts.decision == 'promoted' else 'was refused'}"
    evaluation = store.read_result("evaluate", result.inputs["evaluation"].digest)
    return Event(facts.decision, f"{what}: {'; '.join(facts.reasons)}", evaluation["metrics"] if evaluation else {})


STAGE = Stage(Spec, run, headline=headline, event=event, section="stage")

"""Stage ``promote``: registers the aligned policy, and makes it the champion if the gate passes and, in mode ``ask``, a person approves.

Input: the gate's result in an ``evaluate`` stage, and the policy it is about. Output: no file; a version of the registered model and its
aliases. Decision:

- gate failed → *refused*: registered without an alias, so that the registry shows the model and the reasons, and a person may still
  promote it by hand;
- gate cannot tell (an interval contains its threshold) → *undecided*: registered as challenger, and a person may promote it;
  ``gate.when_uncertain: promote`` counts the rule as met instead;
- gate passed and mode auto → *promoted* (alias ``champion``; the old champion becomes ``previous``);
- mode never → *challenger*;
- mode ask → for a gate that passed or cannot tell, a person decides, in the form of the run (``flows/running/approval.py``) or by hand
  (`dora promote`, `dora reject`): approved → *promoted*, rejected → *refused*; until then *challenger*.

An evaluation counts against the champion that it compared the policy with. If another version is champion now, or the evaluation compared
with none, the policy stays *challenger*; the next run plans a comparison with today's champion and evaluates anew. (Where ``compare`` is
off, the gate alone decides.) An answer counts in the same way: given for another champion than today's, it is not used. Until a person has
decided, and while the comparison is outdated, the stage *waits*: it is not done, and the next run repeats it.

Guarantee: the same policy is registered once, however often this runs and wherever it was killed. A final decision is not repeated:
after ``dora rollback`` the same data does not bring the model back, and a rejected model stays rejected.
Cost: well under a second; a copy of the model's files where the registry is a server (``infra/tracking/model_registry.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dora_core.strict_model import NAME_PATTERN, StrictModel
from infra.store.json_files import parsed
from infra.store.store import RESULT, Store
from infra.tracking import model_registry as registry
from tasks.runtime.descriptor import Event, Stage, StageResult
from tasks.runtime.facts import Facts as BaseFacts
from tasks.runtime.spec import NotInDigest, StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.stages._evaluate_facts import Facts as EvaluateFacts
from tasks.stages._evaluate_facts import GateResult

Mode = Literal["auto", "ask", "never"]
Decision = Literal["promoted", "challenger", "undecided", "refused"]
DECISIONS: dict[Decision, str] = {
    "promoted": "The aligned model passed the gate and is the champion now.",
    "challenger": "The aligned model passed the gate and is registered as challenger; a person decides.",
    "undecided": "The evidence does not show whether the aligned model is good enough: it is registered as challenger; the champion stays.",
    "refused": "The aligned model was refused, by the gate or by a person; the champion stays.",
}
"""The sentence below a decision in the report."""
NARROWER = (
    "more held-out prompts (data.holdout_fraction, compare.generate.prompts) or samples (compare.generate.samples) narrow the intervals, "
    "gate.when_uncertain=promote promotes all the same"
)
"""Next steps after an undecided gate."""


class Tracking(StrictModel):
    """Address of the registry, and the MLflow run that produced the model."""

    uri: str = Field(min_length=1, description="MLflow address: sqlite:///… or http(s)://…")
    run_id: str | None = Field(
        None, description="MLflow id of this stage's run; receives the model's files where the registry is a server."
    )


class Answer(StrictModel):
    """A person's decision, and the champion it was made against."""

    approve: bool
    who: str = Field(min_length=1)
    why: str
    champion: str | None = Field(description="Version that was champion when the question was put; null = none.")


class Spec(StageSpec):
    """See the module docstring. ``tracking`` and ``answer`` are filled in when the stage runs; planning needs only the digest.

    Attributes:
        config: digest of the whole configuration, for the audit.
        compares: in mode auto, replace a champion only after a comparison with it.
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
        """Whether the decision is final; a waiting result does not count."""
        result = store.read_result(self.stage, self.digest())
        place = f"{self.stage}/{self.digest()}/{RESULT}"
        return result is not None and not parsed(Facts, result["facts"], place).waits and super().is_done(store)


class Audit(StrictModel):
    """A decision about a model version, as the registry records it."""

    action: str = Field(description="promoted, challenger, rejected, rolled_back, restored.")
    when: str = Field(description="ISO 8601, UTC.")
    who: str
    why: str
    policy: str | None = Field(None, description="Digest of the stage that trained the model.")
    evaluation: str | None = Field(None, description="Digest of the evaluation.")
    config: str | None = Field(None, description="Digest of the whole configuration.")

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Audit:
        """Parse an entry of the registry's history; unknown keys are left out."""
        return cls(**{name: entry[name] for name in cls.model_fields if name in entry})

    @property
    def digests(self) -> dict[str, str]:
        """The digests that are known, by name."""
        found = {"policy": self.policy, "evaluation": self.evaluation, "config": self.config}
        return {name: digest for name, digest in found.items() if digest}


class Facts(BaseFacts):
    """The decision about a model version, and the state of the registry after it."""

    decision: Decision
    model_name: str
    version: str
    reasons: list[str]
    waits: Literal["person", "comparison"] | None = Field(None, description="The decision that is missing; null = the decision is final.")
    champion_before: str | None = Field(None, description="Version that was champion; null = none.")
    aliases: dict[str, str] = Field(description="Versions by alias, after the decision.")
    audit: Audit | None = Field(None, description="Last entry of the version's history in the registry.")


@dataclass(frozen=True)
class Verdict:
    """A decision with its reasons.

    Attributes:
        waits: the decision that is missing: a ``person``'s, or a ``comparison`` with today's champion.
        who, words: the person who decided, and their reason.
        is_new: the aliases are still to be moved; False for a decision that the registry has already.
    """

    decision: Decision
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
        ServiceError: MLflow cannot be reached (retryable). RegistryError: it refuses. RegistryMoved: the champion changed meanwhile
            (retryable).
    """
    assert spec.tracking is not None, "promote was started without the address of a registry"
    uri, name = spec.tracking.uri, spec.model_name
    tags = {"dora.stage": spec.policy.stage, "dora.digest": spec.policy.digest, "dora.evaluation": spec.evaluation.digest}
    model = f"{context.store.uri}/{spec.policy.stage}/{spec.policy.digest}/model"
    version = registry.register(uri, name, model, spec.tracking.run_id, tags | {"dora.config": spec.config})
    champion = registry.aliases(uri, name).get("champion")

    evaluation = context.facts(spec.evaluation, EvaluateFacts)
    verdict = decide(evaluation.gate, spec.mode)
    if verdict.decision == "promoted":
        verdict = by_hand(spec, [Audit.of(entry) for entry in registry.history(uri, name, version)], verdict)
    if verdict.decision == "promoted" and verdict.is_new:
        if champion == version:  # since an attempt that ended halfway, or an earlier evaluation
            if spec.answer is not None and spec.answer.approve:
                verdict = by_answer(spec.answer, spec.answer.champion, verdict)
        elif unseen := _unseen(spec, uri, context, version, champion):
            verdict = verdict.but(unseen, decision="challenger", waits="comparison")
        elif spec.mode == "ask":
            verdict = by_answer(spec.answer, champion, verdict)

    why = "; ".join(verdict.reasons)
    if verdict.is_new:
        if verdict.decision == "promoted":
            registry.promote(uri, name, version, verdict.words or why, who=verdict.who, instead_of=champion)
        elif verdict.decision in ("challenger", "undecided"):
            registry.challenge(uri, name, version, why)
        elif verdict.who is not None:
            registry.reject(uri, name, version, verdict.words, who=verdict.who)
    registry.describe(uri, name, version, verdict.decision, why, evaluation.summary)
    context.log.info("%s version %s: %s (%s)", name, version, verdict.decision, why)

    past = registry.history(uri, name, version)
    facts = Facts(
        decision=verdict.decision,
        model_name=name,
        version=version,
        reasons=verdict.reasons,
        waits=verdict.waits,
        champion_before=champion,
        aliases=registry.aliases(uri, name),
        audit=Audit.of(past[-1]) if past else None,
    )
    return StageOutput(rows=1, metrics={"promoted": float(verdict.decision == "promoted")}, facts=facts)


def decide(gate: GateResult, mode: Mode) -> Verdict:
    """Verdict of gate and mode; its reasons are the broken rules, else the uncertain ones, else those met."""
    if gate.outcome == "failed":
        return Verdict("refused", [rule.reason for rule in gate.broken])
    uncertain = [rule.reason for rule in gate.uncertain]
    if uncertain and mode != "ask":
        return Verdict("undecided", [*uncertain, NARROWER])
    reasons = uncertain or [rule.reason for rule in gate.rules]
    return Verdict("challenger", [*reasons, "promotion.mode is never"]) if mode == "never" else Verdict("promoted", reasons)


def by_hand(spec: Spec, history: list[Audit], verdict: Verdict) -> Verdict:
    """Return ``verdict``, or the last decision of a person about this evaluation of the policy.

    Args:
        history: of the version, oldest first.
    """
    for entry in reversed(history) if spec.mode == "ask" else ():
        if entry.action != "challenger" and entry.evaluation == spec.evaluation.digest:
            reason = f"{entry.action.replace('_', ' ')} by {entry.who}: {entry.why or 'no reason given'}"
            decision = "promoted" if entry.action in ("promoted", "restored") else "refused"
            return verdict.but(reason, decision=decision, who=entry.who, is_new=False)
    return verdict


def by_answer(answer: Answer | None, champion: str | None, verdict: Verdict) -> Verdict:
    """``verdict`` of a passed gate after a person's answer; an answer for another champion than ``champion`` does not count."""
    if answer is None:
        return verdict.but("no decision yet", decision="challenger", waits="person")
    if answer.champion != champion:
        moved = f"{answer.who} answered while another version was champion than {champion or 'none'}: the question is open again"
        return verdict.but(moved, decision="challenger", waits="person")
    if answer.approve:
        return verdict.but(f"approved by {answer.who}: {answer.why}", who=answer.who, words=answer.why)
    return verdict.but(f"rejected by {answer.who}: {answer.why}", decision="refused", who=answer.who, words=answer.why)


def _unseen(spec: Spec, uri: str, context: StageContext, version: str, champion: str | None) -> str | None:
    """Reason why ``version`` may not replace today's champion by its evaluation; None where it may."""
    if champion is None:
        return None
    tags, seen = registry.alias_tags(uri, spec.model_name)["champion"], champion_seen(spec, context)
    stage, now = tags.get("dora.stage"), tags.get("dora.digest")
    is_fine = (spec.mode == "ask" or not spec.compares) if seen is None else seen == now
    if is_fine:  # the form of mode ask shows the champion of the moment
        return None
    if stage and now and context.store.is_done(stage, now):
        return f"version {champion} became champion after the comparison; run again to be compared with it"
    files = f"its files are not in {context.store.uri}"
    return f"version {champion} is champion and cannot be compared with: {files}; to replace it: dora promote {spec.model_name} {version}"


def champion_seen(spec: Spec, context: StageContext) -> str | None:
    """Digest of the champion in the evaluation's comparison; None without one."""
    comparison = context.result(spec.evaluation)["spec"]["comparison"]
    samples = context.result(StageRef(**comparison))["spec"]["champion_samples"] if comparison else None
    return context.result(StageRef(**samples))["spec"]["policy"]["digest"] if samples else None


def headline(result: StageResult[Facts]) -> str:
    because = "" if result.facts.decision == "promoted" else f": {result.facts.reasons[0]}" if result.facts.reasons else ""
    return f"{result.facts.decision}, {result.facts.model_name} version {result.facts.version}{because}"


def event(result: StageResult[Facts], store: Store) -> Event | None:
    """Announce a promotion, a refusal or an undecided gate, with the metrics of the evaluation."""
    facts = result.facts
    outcomes = {"promoted": "is champion", "refused": "was refused", "undecided": "is not promoted"}
    if facts.decision not in outcomes:
        return None
    outcome = outcomes[facts.decision]
    evaluation = store.read_result("evaluate", result.inputs["evaluation"].digest)
    message = f"version {facts.version} of {facts.model_name} {outcome}: {'; '.join(facts.reasons)}"
    return Event(facts.decision, message, evaluation["metrics"] if evaluation else {})


STAGE = Stage(Spec, run, facts=Facts, headline=headline, event=event, section="stage")

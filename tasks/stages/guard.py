"""Stage ``guard``: decides whether a self-training round may continue.

Input: stages of the round: its samples (before they cost a judgement), its mixture and their calibration (before
training on them), its evaluation. Output: facts alone. ``facts.rules`` holds every rule with evidence: value, threshold and a sentence;
``passed`` is null where it was not judged (switched off, or too little evidence). If a rule is broken, ``facts.stop`` names all broken
rules and ends the run; the rounds before are kept. The rules are in ``_guard_rules.py``.

- *samples*: the generator has collapsed, to one phrase (distinct bigrams, against round 1), one text per prompt (self-BLEU), or one answer
  to every prompt. Measured on at most :data:`MOST_PROMPTS` prompts drawn by hash, as many in both rounds: distinct-n falls with the sample.
- *mixture*: too little golden data is left, or few responses carry all of h's weight.
- *policy*: it has gone too far from the start, or got worse on a source. Held-out sources are small, so a fall against the round before
  counts by its lower 95 % bound (normal, from the two accuracies and numbers of prompts as if they were independent, which they are not:
  the same prompts make the true error smaller, and the rule cautious).

Left out: a slow decline over many rounds. Every evaluation is against the same start, so the gate of the last one covers it.
"""

from __future__ import annotations

import logging
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dora_core.config.rounds import GuardConfig
from dora_core.evaluation.diversity import Diversity
from infra.store.store import Store
from tasks.runtime.descriptor import Event, Stage, StageResult
from tasks.runtime.facts import Stop
from tasks.runtime.spec import StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.stages import mix
from tasks.stages._calibrate_facts import Facts as CalibrateFacts
from tasks.stages._evaluate_facts import Facts as EvaluateFacts
from tasks.stages._guard_facts import Facts as Facts
from tasks.stages._guard_facts import Rule
from tasks.stages._guard_rules import GUARD_RAILS, Evidence, Policy, Samples
from tasks.tables.artifacts import SAMPLES_FILE
from tasks.tables.rows import record_batches

MOST_PROMPTS = 256


class Spec(StageSpec):
    """See the module docstring. ``first_samples``: samples of round 1; ``before``: the evaluation of the round before."""

    stage: ClassVar[str] = "guard"
    placement: ClassVar[Literal["job", "local"]] = "local"

    round: int = Field(ge=1)
    guard: GuardConfig
    samples: StageRef | None = None
    first_samples: StageRef | None = None
    mix: StageRef | None = None
    calibration: StageRef | None = None
    evaluation: StageRef | None = None
    before: StageRef | None = None

    @model_validator(mode="after")
    def _check(self) -> Spec:
        if not (self.samples or self.mix or self.calibration or self.evaluation):
            raise ValueError("nothing to guard: give samples, mix, calibration or evaluation")
        return self


# -------------------------------------------------------------------------------------------------------------- samples


def measure(context: StageContext, stages: list[StageRef]) -> list[Diversity]:
    """Diversity of each stage's samples, for equally many prompts: the ones with the smallest hashes."""
    import numpy as np

    from dora_core.data.records import shuffle_key
    from dora_core.evaluation.diversity import diversity

    files = [context.fetch(ref) / SAMPLES_FILE for ref in stages]
    per_prompt = [context.result(ref)["spec"]["generate"]["samples"] for ref in stages]
    keys = [
        shuffle_key(np.concatenate([batch["prompt_hash"].to_numpy() for batch in record_batches(file, ["prompt_hash"])])[::k], 0)
        for file, k in zip(files, per_prompt, strict=True)
    ]
    prompts, found = min(MOST_PROMPTS, *map(len, keys)), []
    for file, k, key_P in zip(files, per_prompt, keys, strict=True):
        chosen_P = np.sort(key_P.argsort(kind="stable")[:prompts])
        wanted_S = (k * chosen_P[:, None] + np.arange(k)).ravel()
        responses, start = list[str](), 0
        for batch in record_batches(file, ["response"]):
            inside = wanted_S[slice(*wanted_S.searchsorted([start, start + len(batch)]))] - start
            responses += batch["response"].take(inside).to_pylist()
            start += len(batch)
        found.append(diversity([responses[i : i + k] for i in range(0, len(responses), k)]))
    return found


# ------------------------------------------------------------------------------------------------------------- the stage


def stop(number: int, broken: list[Rule]) -> Stop:
    """Stop the run: every broken rule, and per rule the remedy and the key that loosens it."""
    rails = [GUARD_RAILS[rule.name] for rule in broken]
    remedies = "; ".join(f"{rail.remedy} (or loosen rounds.guard.{rail.key})" for rail in rails)
    reasons = "; ".join(rule.message for rule in broken)
    return Stop(message=f"round {number} is stopped by its guard rails: {reasons}", hint=remedies)


def gather(spec: Spec, context: StageContext) -> Evidence:
    """Read the evidence that the spec names."""
    samples = policy = None
    if spec.samples is not None:
        now, *first = measure(context, [ref for ref in (spec.samples, spec.first_samples) if ref is not None])
        samples = Samples(now, first[0] if first else None)
    if spec.evaluation is not None:
        before = None if spec.before is None else context.facts(spec.before, EvaluateFacts)
        policy = Policy(context.facts(spec.evaluation, EvaluateFacts), before)
    return Evidence(
        samples=samples,
        mix=None if spec.mix is None else context.facts(spec.mix, mix.Facts),
        calibration=None if spec.calibration is None else context.facts(spec.calibration, CalibrateFacts),
        policy=policy,
    )


def run(spec: Spec, context: StageContext) -> StageOutput:
    evidence = gather(spec, context)
    rules = [rule for rail in GUARD_RAILS.values() if (rule := rail.judge(spec.guard, evidence)) is not None]
    broken = [rule for rule in rules if rule.passed is False]
    for rule in rules:
        context.log.log(logging.WARNING if rule in broken else logging.INFO, "%s: %s", rule.name, rule.message)
    facts = Facts(
        round=spec.round,
        passed=not broken,
        rules=rules,
        stop=stop(spec.round, broken) if broken else None,
        diversity=evidence.samples.now if evidence.samples else None,
    )
    metrics = {rule.name: rule.value for rule in rules if rule.value is not None} | {"broken": float(len(broken))}
    return StageOutput(rows=len(rules), metrics=metrics, facts=facts)


def headline(result: StageResult[Facts]) -> str:
    broken = [rule.message for rule in result.facts.rules if rule.passed is False]
    return f"stop: {'; '.join(broken)}" if broken else f"{sum(rule.passed is True for rule in result.facts.rules)} rules met"


def event(result: StageResult[Facts], store: Store) -> Event | None:
    """Announce that a guard rail ends the run."""
    stop = result.facts.stop
    return Event("guard.stopped", stop.message, result.metrics, stops=True) if stop else None


STAGE = Stage(Spec, run, Facts, headline=headline, tracked=("",), event=event)

"""Stage ``guard``: may a self-training round go on?

Looks at whatever stages of the round it is given: its samples (before they cost a judgement), its mixture and their calibration (before
they are trained on), its evaluation. Output: facts alone. ``facts["rules"]`` holds every rule that could be looked at, with figure,
threshold and a sentence; ``passed`` is null where it was not judged (switched off, or too little to judge by). If one is broken,
``facts["stop"]`` names all that are and ends the run; the rounds before are kept.

- *samples*: the generator has collapsed, to one phrase (distinct bigrams, against round 1), one text per prompt (self-BLEU), or one answer
  to every prompt. Measured on at most :data:`MOST_PROMPTS` prompts drawn by hash, as many in both rounds: distinct-n falls with the sample.
- *mixture*: too little golden data is left to hold on to, or few responses carry all of h's weight.
- *policy*: it has gone too far from the start, or got worse on a source. Held-out sources are small, so that what counts of a fall
  against the round before is its lower 95 % bound (normal, from the two accuracies and numbers of prompts as if they were independent,
  which they are not: the same prompts make the true error smaller, and the rule cautious).

Left out: a slow decline over many rounds. Every evaluation is against the same start, so the gate of the last one sees it.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from dora_core.config.rounds import GuardConfig
from infra.store.store import Store
from tasks.runtime.descriptor import Event, Stage, StageResult
from tasks.runtime.stage import StageContext, StageOutput, StageRef, StageSpec
from tasks.tables.rows import record_batches

if TYPE_CHECKING:
    from dora_core.evaluation.diversity import Diversity

MOST_PROMPTS = 256
NORMAL_95 = 1.645  # one-sided

Rule = dict[str, Any]


class Spec(StageSpec):
    """See the module docstring. ``first_samples``: those of round 1; ``before``: the evaluation of the round before."""

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


def judged(name: str, value: float | None, threshold: float | None, *, at_least: bool, message: str) -> Rule:
    """A rule; ``passed`` None: no threshold or no value, then ``message`` should say what there is."""
    passed = None
    if value is not None and threshold is not None:
        passed = value >= threshold if at_least else value <= threshold
        message = f"{message}; {'at least' if at_least else 'at most'} {threshold:.3g}"
    elif value is not None:
        message = f"{message}; not judged"
    return {"name": name, "value": value, "threshold": threshold, "passed": passed, "message": message}


# -------------------------------------------------------------------------------------------------------------- samples


def measure(context: StageContext, stages: list[StageRef]) -> list[Diversity]:
    """Diversity of each stage's samples, for equally many prompts, those of the smallest hashes."""
    import numpy as np

    from dora_core.data.records import shuffle_key
    from dora_core.evaluation.diversity import diversity

    files = [context.fetch(ref) / "samples.parquet" for ref in stages]
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


def of_samples(guard: GuardConfig, now: Diversity, first: Diversity | None) -> list[Rule]:
    """``first``: of round 1, of as many samples."""
    of, rules = f"{now.samples} samples", list[Rule]()
    floor = None if first is None or first.distinct_2 is None or guard.min_distinct is None else guard.min_distinct * first.distinct_2
    if now.distinct_2 is None:
        message = f"none of {of} has two words"
        rules.append(judged("distinct", None if floor is None else 0.0, floor, at_least=True, message=message))
    else:
        message = f"{now.distinct_2:.1%} of the bigrams in {of} are different ones"
        if floor is not None and first is not None:
            message += f", {now.distinct_2 / first.distinct_2:.0%} of round 1's {first.distinct_2:.1%}"
        rules.append(judged("distinct", now.distinct_2, floor, at_least=True, message=message))
    if now.self_bleu is None or now.identical is None:
        message = "one sample a prompt: self-BLEU needs two"
    else:
        message = f"self-BLEU of a prompt's samples is {now.self_bleu:.3f}, {now.identical:.0%} of them repeat an earlier one"
    rules.append(judged("self_bleu", now.self_bleu, guard.max_self_bleu, at_least=False, message=message))
    message = "one prompt: nothing to compare its samples with"
    if now.one_answer is not None:
        message = f"{now.one_answer:.0%} of {now.prompts} prompts have the same most common answer"
    rules.append(judged("one_answer", now.one_answer, guard.max_one_answer, at_least=False, message=message))
    return rules


# ---------------------------------------------------------------------------------------------------- mixture and policy


def of_mixture(guard: GuardConfig, mix: dict[str, Any]) -> list[Rule]:
    share = mix["golden_share"]
    return [judged("golden_share", share, guard.min_golden_share, at_least=True, message=f"{share:.1%} of the mixture is golden")]


def of_calibration(guard: GuardConfig, calibration: dict[str, Any]) -> list[Rule]:
    message = f"effective sample size of h is {calibration['ess']:.1%}"
    if calibration["tau"] < 1.0:
        message += f", tempered with τ = {calibration['tau']:.2f} from {calibration['ess_by_form'][calibration['form']]:.1%}"
    return [judged("ess", calibration["ess"], guard.min_ess, at_least=True, message=message)]


def of_policy(guard: GuardConfig, now: dict[str, Any], before: dict[str, Any] | None) -> list[Rule]:
    rules = []
    if now["kl"] is not None:
        kl = now["kl"]["value"]
        rules.append(judged("kl", kl, guard.max_kl, at_least=False, message=f"KL(policy‖start) is {kl:.2f} nats per response"))
    if before is not None:
        rules.append(source_regression(guard, now["by_source"], before["by_source"]))
    return rules


def source_regression(guard: GuardConfig, now: dict[str, Any], before: dict[str, Any]) -> Rule:
    """The largest lower bound of a fall in ranking accuracy, over sources with enough held-out prompts in both rounds."""
    falls = {}
    for name in now.keys() & before.keys():
        sides = [(side[name]["ranking_policy"], side[name]["accuracy"]["n"]) for side in (before, now)]
        if min(n for _, n in sides) >= guard.min_source_prompts:
            smoothed = [((p * n + 1) / (n + 2), n) for p, n in sides]  # no error of 0 at accuracies of 0 and 1
            error = math.sqrt(sum(p * (1 - p) / n for p, n in smoothed))
            falls[name] = sides[0][0] - sides[1][0] - NORMAL_95 * error
    if not falls:
        message = f"no source has {guard.min_source_prompts} held-out prompts in both rounds"
        return judged("source_regression", None, guard.max_source_regression, at_least=False, message=message)
    worst = min(falls, key=lambda name: (-falls[name], name))
    then, new = before[worst]["ranking_policy"], now[worst]["ranking_policy"]
    message = f"ranking accuracy of {worst} went from {then:.3f} to {new:.3f} on {now[worst]['accuracy']['n']} prompts"
    message += f", a fall of {falls[worst]:.3f} or more" if falls[worst] > 0 else ", no fall beyond chance"
    return judged("source_regression", falls[worst], guard.max_source_regression, at_least=False, message=message)


# ------------------------------------------------------------------------------------------------------------- the stage

NEXT = {
    "distinct": ("the samples have lost their words: compare them with round 1's, raise generate.temperature or top_p", "min_distinct"),
    "self_bleu": ("the samples of a prompt are all alike: raise generate.temperature (0 is greedy) or top_p", "max_self_bleu"),
    "one_answer": ("the policy answers every prompt alike: look at the judge, which may reward that answer", "max_one_answer"),
    "golden_share": ("raise rounds.mix.given_fraction, or set rounds.mix.given to golden", "min_golden_share"),
    "ess": ("few responses carry h: set calibration.temper to auto, or add golden responses like them", "min_ess"),
    "kl": ("train less per round: rounds.optimization with fewer epochs or a lower learning rate, or a larger align.loss.beta", "max_kl"),
    "source_regression": ("look at that source in the evaluation, and at its share of the mixture", "max_source_regression"),
}
"""What to do about a broken rule, and the key of ``rounds.guard`` that loosens it."""


def stop(number: int, broken: list[Rule]) -> dict[str, str]:
    remedies = "; ".join(f"{look} (or loosen rounds.guard.{key})" for look, key in (NEXT[rule["name"]] for rule in broken))
    reasons = "; ".join(rule["message"] for rule in broken)
    return {"message": f"round {number} is stopped by its guard rails: {reasons}", "hint": remedies}


def run(spec: Spec, context: StageContext) -> StageOutput:
    rules, shown = list[Rule](), None
    if spec.samples is not None:
        shown, *first = measure(context, [ref for ref in (spec.samples, spec.first_samples) if ref is not None])
        rules += of_samples(spec.guard, shown, first[0] if first else None)
    if spec.mix is not None:
        rules += of_mixture(spec.guard, context.result(spec.mix)["facts"])
    if spec.calibration is not None:
        rules += of_calibration(spec.guard, context.result(spec.calibration)["facts"])
    if spec.evaluation is not None:
        before = None if spec.before is None else context.result(spec.before)["facts"]
        rules += of_policy(spec.guard, context.result(spec.evaluation)["facts"], before)

    broken = [rule for rule in rules if rule["passed"] is False]
    for rule in rules:
        context.log.log(logging.WARNING if rule in broken else logging.INFO, "%s: %s", rule["name"], rule["message"])
    facts = {
        "round": spec.round,
        "passed": not broken,
        "rules": rules,
        "stop": stop(spec.round, broken) if broken else None,
        "diversity": shown.to_json() if shown else None,
    }
    metrics = {rule["name"]: rule["value"] for rule in rules if rule["value"] is not None} | {"broken": float(len(broken))}
    return StageOutput(rows=len(rules), metrics=metrics, facts=facts)


def headline(result: StageResult[Any]) -> str:
    broken = [rule["message"] for rule in result.facts.rules if rule["passed"] is False]
    return f"stop: {'; '.join(broken)}" if broken else f"{sum(rule['passed'] is True for rule in result.facts.rules)} rules met"


def event(result: StageResult[Any], store: Store) -> Event | None:
    """A guard rail ends the run."""
    stop = result.facts.stop
    return Event("guard.stopped", stop["message"], result.metrics, stops=True) if stop else None


STAGE = Stage(Spec, run, headline=headline, tracked=("",), event=event)

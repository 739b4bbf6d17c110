"""Stage ``finals``: the race by training: which finalist the alignment trains in full (``race.by: training``).

Input: the race by proxy, with the tables of its finalists, and the search that trained each for a while. Output:
``calibration.parquet`` and ``label_trust.parquet`` of the winner, in the forms of ``race``; facts in the form of those of ``race``, with
the finalists' golden losses. The proxy's choice stays unless another finalist is better by more than one standard error of the paired
difference. Cost: two files are copied.

Approximation: the proxy chose with the help of all golden preferences, those of the held-out prompts too, by a few numbers (κ, ridge,
trust); the baselines had no such help. So the comparison favours the proxy's choice a little.
"""

from __future__ import annotations

import shutil
from statistics import NormalDist
from typing import ClassVar, Literal

from dora_core.evaluation.metrics import Interval, estimate_text
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.spec import StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.stages._race_facts import Facts as Facts
from tasks.stages._race_facts import Finalist
from tasks.stages._tune_facts import Facts as TuneFacts
from tasks.tables.artifacts import CALIBRATION_FILE, FINALISTS, TRUST_FILE

CHOICE = "choice"


class Spec(StageSpec):
    """See the module docstring."""

    stage: ClassVar[str] = "finals"
    placement: ClassVar[Literal["job", "local"]] = "local"

    race: StageRef
    tune: StageRef
    confidence: float
    """Level of the search's intervals."""


def run(spec: Spec, context: StageContext) -> StageOutput:
    race, search = context.facts(spec.race, Facts), context.facts(spec.tune, TuneFacts)
    found = {trial.name: trial for trial in search.trials if trial.loss is not None and trial.state != "failed"}
    finalists = {
        name: finalist.evolve(loss=found[name].loss, gain=found[name].gain, steps=found[name].steps) if name in found else finalist
        for name, finalist in race.finalists.items()
    }
    winner = choose(finalists, spec.confidence)
    for name in (CALIBRATION_FILE, TRUST_FILE):
        shutil.copyfile(context.fetch(spec.race) / FINALISTS / winner / name, context.path / name)
    chosen = finalists[winner]
    facts = race.evolve(
        objective=chosen.objective,
        mean_weight=chosen.mean_weight,
        finalists=finalists,
        reason=_reason(finalists, winner),
        warnings=[*race.warnings, *search.warnings],
    )
    metrics = {f"loss_{name}": finalist.loss.value for name, finalist in finalists.items() if finalist.loss is not None}
    return StageOutput(rows=len(found), metrics=metrics, facts=facts)


def choose(finalists: dict[str, Finalist], confidence: float) -> str:
    """Return the name of the finalist with the largest gain over the proxy's choice, if that is above one standard error."""
    better = [
        (name, one.gain)
        for name, one in finalists.items()
        if one.gain is not None and one.gain.value > standard_error(one.gain, confidence)
    ]
    return max(better, key=lambda item: item[1].value)[0] if better else CHOICE


def standard_error(interval: Interval, confidence: float) -> float:
    """Standard error of an estimate with a percentile interval, by the normal distribution."""
    return (interval.high - interval.low) / (2 * NormalDist().inv_cdf(0.5 + confidence / 2))


def _reason(finalists: dict[str, Finalist], winner: str) -> str:
    chosen = finalists[winner]
    if winner != CHOICE:
        by, other = estimate_text(chosen.gain, "+.4f"), finalists[CHOICE].title
        return f"{chosen.title}: after {chosen.steps} steps better than the proxy's choice ({other}) by {by} nats of golden loss"
    others = ", ".join(f"{one.title} {estimate_text(one.gain, '+.4f')}" for one in finalists.values() if one.gain is not None)
    return (
        f"{chosen.title}, the proxy's choice: no other finalist is better by more than one standard error ({others or 'none was measured'})"
    )


def headline(result: StageResult[Facts]) -> str:
    return result.facts.reason


STAGE = Stage(
    Spec, run, facts=Facts, headline=headline, tracked=("loss_",), section="stage", unplanned="Not part of this run: race.by is proxy."
)

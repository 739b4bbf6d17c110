"""Stage ``tune``: a search over settings of alignment by short trials, on Ray Tune.

Input: its trials (``tasks/stages/trial.py``), the first of which the others are compared with; the stages that they read. Output: no
file; in the facts every trial with its values, measures and state, the best first. Guarantee: a finished measurement is never computed
again, nor a decision to stop a trial made twice: a search that was killed goes on, and one with more trials or other rivals reuses the
measurements. Which trials ASHA stops depends on the order in which they come in, so two searches from nothing may stop other ones. Cost:
that of the trials; ``execution.align`` says what one needs, and Ray Tune runs as many at a time as the cluster has room for.

Golden pairs of held-out *train* prompts judge, never the evaluation split, so the gate's evidence stays untouched. The best of many
trials is a selected one: its loss is optimistic, and its interval does not know of the selection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from dora_core.config.tuning import TuneConfig
from dora_core.errors import TrainingError
from dora_core.strict_model import StrictModel
from tasks.runtime.cluster import ray_session
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.spec import NotInDigest, StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput, write_spec
from tasks.stages import trial
from tasks.stages._tune_facts import Facts as Facts
from tasks.stages._tune_facts import State, TrialFacts, TrialRung
from tasks.tables.artifacts import RECORDS_FILE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tasks.stages._tune_search import Search


class Entry(StrictModel):
    """A trial, its name, and the values that it tries."""

    name: str
    trial: StageRef
    values: dict[str, Any]


class Spec(StageSpec):
    """See the module docstring.

    Attributes:
        specs: of the trials, in their order.
        reads: stages that the trials read.
        prepared: on-demand stages that they read.
        minutes: budget; a search that ran out of time is done, and another budget is another search over the same measurements.
    """

    stage: ClassVar[str] = "tune"

    trials: list[Entry] = Field(min_length=1)
    tune: TuneConfig
    minutes: float | None = None
    specs: Annotated[list[trial.Spec], NotInDigest]
    reads: list[StageRef]
    prepared: Annotated[list[StageRef], NotInDigest] = Field(default_factory=list)


def search_spec(
    trials: Mapping[str, trial.Spec],
    values: Mapping[str, dict[str, Any]],
    settings: TuneConfig,
    minutes: float | None,
    prepared: Sequence[StageRef] | None = None,
) -> Spec:
    """Return the spec of a search.

    Args:
        trials: by name; the others are compared with the first.
        values: that each tries, by name.
        prepared: on-demand stages that trials read which have measurements to come; None: those of all.
    """
    specs = list(trials.values())
    reads = {ref.digest: ref for spec in specs for ref in spec.inputs().values()}
    needed = {data.digest(): data.ref() for spec in specs for data in spec.preparation().values()}
    execution = specs[0].execution
    return Spec(
        trials=[Entry(name=name, trial=spec.ref(), values=values[name]) for name, spec in trials.items()],
        tune=settings,
        minutes=minutes,
        specs=specs,
        reads=list(reads.values()),
        prepared=list(needed.values()) if prepared is None else list(prepared),
        execution=execution.evolve(workers=max(1, execution.workers)),  # Ray Tune starts processes in any case
    )


def run(spec: Spec, context: StageContext) -> StageOutput:
    from tasks.stages._tune_search import run_trials

    refs = [entry.trial for entry in spec.trials]
    assert [one.ref() for one in spec.specs] == refs, "a search names the trials that it brings"
    for one in spec.specs:
        write_spec(one, context.store)
    first = spec.specs[0]
    trial.GoldenPairs.read(first, context.fetch(first.records) / RECORDS_FILE)  # refused here, not by every trial
    with ray_session():
        search = run_trials(context, refs, spec.tune, first.execution, spec.minutes)
    facts = summarise(spec, context, search)
    _tidy(context, refs)
    metrics = {
        f"best_golden_{name}": value.value for name, value in (("loss", facts.best.loss), ("accuracy", facts.best.accuracy)) if value
    }
    if (gain := facts.best.gain) is not None:
        metrics["gain"] = gain.value
    states = {name: sum(t.state == state for t in facts.trials) for name, state in (("finished", "finished"), ("stopped", "stopped"))}
    return StageOutput(rows=len(facts.trials), metrics=metrics | states | {"computed": facts.computed}, facts=facts)


def _tidy(context: StageContext, refs: list[StageRef]) -> None:
    """Delete checkpoints: no trial of this search goes on."""
    import shutil

    for ref in refs:
        shutil.rmtree(context.store.local(f"{ref.stage}/{ref.digest}/scratch"), ignore_errors=True)


# --------------------------------------------------------------------------------------------------------------- facts


def summarise(spec: Spec, context: StageContext, search: Search) -> Facts:
    """Read every trial's measurements from the store.

    Raises:
        TrainingError: no trial has a measurement.
    """
    found = [_facts_of(entry, settings, spec, context, search) for entry, settings in zip(spec.trials, spec.specs, strict=True)]
    measured = [facts for facts in found if facts.loss is not None]
    if not measured:
        failed = next((facts for facts in found if facts.state == "failed"), None)
        raise TrainingError(
            f"no trial has a measurement: {failed.reason if failed else f'none came to its first rung in {spec.minutes:g} minutes'}",
            hint="give more --minutes, or lower tune.fraction" if failed is None else "correct the configuration or the range of values",
        )
    first = found[0]
    found = [facts.evolve(gain=_gain(facts, first, spec, context)) for facts in found]
    ordered = sorted(found, key=lambda facts: _rank(facts, spec.tune))
    best = ordered[0]
    assert best.loss is not None
    improves = best.gain is not None and best.gain.low > 0
    return Facts(
        trials=ordered,
        metric=spec.tune.metric,
        reason=_reason(best, first, improves),
        improves=improves,
        golden_prompts=best.loss.n,
        computed=search.computed,
        warnings=_warnings(ordered, spec),
    )


def _facts_of(entry: Entry, settings: trial.Spec, spec: Spec, context: StageContext, search: Search) -> TrialFacts:
    from tasks.stages._tune_search import failure

    rungs = [rung for milestone in spec.tune.milestones if (rung := trial.read_rung(settings, context, milestone)) is not None]
    digest = entry.trial.digest
    error = failure(context.store, settings)
    reason = error["message"] if error else search.errors.get(digest, "")
    if digest in search.stopped:
        rungs = [rung for rung in rungs if rung.milestone <= search.stopped[digest]]
    state: State = (
        "failed" if reason else "stopped" if digest in search.stopped else "finished" if digest in search.finished else "out of time"
    )
    last = rungs[-1] if rungs else None
    return TrialFacts(
        name=entry.name,
        digest=digest,
        values=entry.values,
        state=state,
        reason=reason,
        steps=last.step if last else 0,
        planned=last.steps if last else 0,
        loss=last.loss if last else None,
        accuracy=last.accuracy if last else None,
        rungs=[TrialRung(step=rung.step, loss=rung.loss.value, accuracy=rung.accuracy.value) for rung in rungs],
    )


def _rank(facts: TrialFacts, settings: TuneConfig) -> tuple[float, ...]:
    """Failed trials last, those that came farther first, then by the metric."""
    if facts.loss is None or facts.accuracy is None:
        return 2.0, 0.0, 0.0
    score = facts.loss.value if settings.metric == "loss" else -facts.accuracy.value
    return float(facts.state == "failed"), -float(len(facts.rungs)), score


def _gain(facts: TrialFacts, first: TrialFacts, spec: Spec, context: StageContext) -> Any:
    """Golden loss of the configuration as it is minus that of a trial, at the last rung that both have."""
    from dora_core.evaluation.metrics import paired_difference
    from dora_core.evaluation.preference_loss import calibrated_losses

    common = min(len(facts.rungs), len(first.rungs))
    if not common or facts.digest == first.digest:
        return None
    milestone = spec.tune.milestones[common - 1]
    theirs_P, prompt_P = _margins(context, first.digest, milestone)
    ours_P, _ = _margins(context, facts.digest, milestone)
    options = spec.tune.bootstrap_samples, spec.tune.confidence, spec.tune.seed
    return paired_difference(calibrated_losses(theirs_P, prompt_P), calibrated_losses(ours_P, prompt_P), prompt_P, *options)


def _margins(context: StageContext, digest: str, milestone: int) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
    import pyarrow.parquet as pq

    name = f"{trial.Spec.stage}/{digest}/rungs/{milestone}.parquet"
    path = context.store.local(name)
    table = pq.read_table(path if path.is_file() else context.store.download(name))
    return table["margin"].to_numpy(), table["prompt_hash"].to_numpy()


def _reason(best: TrialFacts, first: TrialFacts, improves: bool) -> str:
    tried = ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in best.values.items())
    other = f"the first, {first.name}" if first.values else "the configuration as it is"
    if best.digest == first.digest:
        return f"no trial is better than {other}"
    if best.gain is None:
        return f"best: {tried}; {other} has no measurement to compare with"
    interval = f"{best.gain.value:+.4f} [{best.gain.low:+.4f}, {best.gain.high:+.4f}] nats of golden loss"
    if improves:
        return f"best: {tried}, better than {other} by {interval}"
    return f"best: {tried}, not shown to be better than {other}: {interval}"


def _warnings(ordered: list[TrialFacts], spec: Spec) -> list[str]:
    failed = [facts for facts in ordered if facts.state == "failed"]
    late = [facts for facts in ordered if facts.state == "out of time"]
    warnings = [f"{facts.name} failed: {facts.reason}" for facts in failed[:5]]
    if late:
        warnings.append(f"{len(late)} of {len(ordered)} trials did not end within {spec.minutes or 0:g} minutes; with more they go on")
    return warnings


def headline(result: StageResult[Facts]) -> str:
    return result.facts.reason


STAGE = Stage(Spec, run, Facts, headline=headline, tracked=("best_golden_", "gain"))

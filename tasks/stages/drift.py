"""Stage ``drift``: the distance of new data from the last run's, and the decision about its classifiers.

Input: the records, and of the last run its records, classifiers and calibration. Output: facts alone. Per source: responses and share of
the mixture before and now; of the rows that are new since the last run, length in characters (quantiles, Kolmogorov-Smirnov distance to
the earlier rows) and h under the earlier classifiers (likewise); and the classifiers' AUC at their fit and on rows new since it.
``facts.rules`` holds each measure with its thresholds (``DriftConfig``) and a verdict, ``facts.decision`` the consequence:

- ``fit``: no earlier classifier exists, or it cannot serve this data;
- ``reuse``: ``facts.keep`` names the ``classify`` stage to use;
- ``refit``: it could serve, but a measure is beyond its ``refit_…`` threshold, or ``classifier.refit`` is ``always``;
- ``refuse``: a measure is beyond its ``refuse_…`` threshold, whatever ``classifier.refit`` is; ``facts.stop`` ends the run.

Guarantee: thresholds apply to a measure minus its chance part (``dora_core/evaluation/distances.py``), so that more data of the same kind
does not count as drift; a measure of fewer than ``JUDGEABLE`` rows is not judged and is listed as such. h is of the form that is
configured now, with the shares of the last run: the rows change, not the formula.
Cost: one pass over both runs' records, one forward pass over at most :data:`JUDGED_AT_MOST` new rows of each source. A first run costs
nothing. Memory: about 30 bytes a training response of both runs.

The golden rows of ``golden.parquet`` count for AUC only: they are not part of the mixture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from dora_core.config.method import CalibrationConfig, ClassifierConfig
from dora_core.config.rounds import DriftConfig
from dora_core.errors import DataError
from infra.store.store import Store
from tasks.runtime.descriptor import Event, Stage, StageResult
from tasks.runtime.facts import Stop
from tasks.runtime.spec import NotInDigest, StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.stages import classify
from tasks.stages._classify_facts import Facts as ClassifyFacts
from tasks.stages._classify_rows import at_most, head_names, labelled_rows, to_examples
from tasks.stages._drift_facts import Facts, Previous, Rule
from tasks.stages._drift_measures import Comparison, Fit, Responses, Scored

if TYPE_CHECKING:
    import pyarrow as pa

JUDGED_AT_MOST = 2000  # new rows of a source, and of golden, that are scored


class Spec(StageSpec):
    """See the module docstring. ``previous`` is None in a first run."""

    stage: ClassVar[str] = "drift"

    records: StageRef
    classifier: ClassifierConfig
    calibration: CalibrationConfig
    golden_sources: list[str]
    drift: DriftConfig
    previous: Annotated[Previous | None, NotInDigest] = None


# --------------------------------------------------------------------------------------------------------------- decide


@dataclass(frozen=True)
class Decision:
    decision: Literal["fit", "reuse", "refit", "refuse"]
    reason: str
    keep: StageRef | None = None


def cannot_serve(spec: Spec, context: StageContext, ref: StageRef, rows: pa.Table) -> str:
    """The reason why earlier classifiers cannot estimate the ratios of this run; empty if they can."""
    from dora_core.classifier.scoring import read_meta

    if not context.store.is_done(ref.stage, ref.digest):
        return f"the earlier classifier {ref.digest[:12]} is no longer in the store"
    if context.result(ref)["spec"]["version"] != classify.Spec.version:
        return "the earlier classifier was fitted by another version of this stage"
    meta = read_meta(context.fetch(ref) / classify.FOLDER)
    now, then = spec.classifier.model_dump(mode="json"), meta.config
    if changed := sorted(name for name in now if name != "refit" and now[name] != then.get(name)):
        return f"classifier.{changed[0]} changed from {then.get(changed[0])} to {now[changed[0]]}"
    if meta.golden_sources != spec.golden_sources:
        return f"golden sources changed from {meta.golden_sources} to {spec.golden_sources}"
    if unknown := sorted(set(head_names(rows)) - set(meta.sources)):
        return f"the earlier classifier has no head for {', '.join(unknown)}"
    return ""


def decide(refit: Literal["auto", "always", "never"], rules: list[Rule], ref: StageRef, obstacle: str, new: int) -> Decision:
    """Derive the decision from rules and policy; ``obstacle``: the reason why ``ref`` cannot serve; ``new``: rows new since its fit.

    Raises:
        DataError: ``refit`` is never and there is an obstacle.
    """
    if broken(rules, "refuse"):
        return Decision("refuse", reasons(rules, "refuse"))
    if obstacle and refit == "never":
        raise DataError(f"classifier.refit is never, but {obstacle}", hint="set classifier.refit to auto or always")
    if obstacle:
        return Decision("fit", obstacle)
    if refit == "always":
        return Decision("refit", "classifier.refit is always")
    if refit == "never":
        return Decision("reuse", "classifier.refit is never", ref)
    if broken(rules, "refit"):
        return Decision("refit", reasons(rules, "refit"))
    if new == 0:
        return Decision("reuse", "no training response is new since the fit", ref)
    falls = [(r.value, r.message) for r in rules if r.name == "auc_drop" and r.value is not None]
    growth = next(r.message for r in rules if r.name == "growth")
    if not falls:
        return Decision("reuse", f"{growth}, too few of any source to judge its AUC", ref)
    return Decision("reuse", f"{growth}; {max(falls, key=lambda fall: fall[0])[1]}", ref)


def broken(rules: list[Rule], verdict: str) -> dict[str, list[Rule]]:
    """Rules with this verdict, by name, the worst source first."""
    found: dict[str, list[Rule]] = {}
    for one in sorted((r for r in rules if r.verdict == verdict), key=lambda r: -r.excess):
        found.setdefault(one.name, []).append(one)
    return found


def reasons(rules: list[Rule], verdict: str) -> str:
    more = [(worst.message, len(others)) for worst, *others in broken(rules, verdict).values()]
    return "; ".join(f"{message} (and {others} more of its kind)" if others else message for message, others in more)


def stop(rules: list[Rule]) -> Stop:
    """Stop the run because of refused rules: the worst of each, the rows to look at, and thresholds that would let them pass."""
    worst = [of_name[0] for of_name in broken(rules, "refuse").values()]
    rows = " and ".join(sorted({f"of {r.source}" if r.source else "of all sources" for r in worst}))
    keys = ", ".join(f"drift.refuse_{r.name} to {math.ceil(100 * r.excess) / 100:g}" for r in worst)
    return Stop(
        message=f"the data has moved too far from the last run's: {reasons(rules, 'refuse')}",
        hint=f"look at the new rows {rows}; if the change is intended, raise {keys} or more, or set it to null",
    )


def score(spec: Spec, context: StageContext, fit: Fit, new: pa.Table) -> Scored:
    """Score a sample of the rows ``new`` since the fit, which come from ``labelled_rows``."""
    import pyarrow as pa

    from tasks.runtime.shards import run_shards

    sources = fit.meta.sources
    sample = at_most(JUDGED_AT_MOST, new, sources)
    examples = to_examples(sample, sources, fit.meta.folds, context.fetch(spec.records))
    arguments = classify.LogitArguments(store_uri=context.store.uri, execution=spec.execution, classifier=fit.ref)
    logits = run_shards(
        context,
        pa.table({"key": sample["key"], "prompt": examples.prompts, "response": examples.responses, "fold": examples.fold_N}),
        name="judge",
        worker=partial(classify.LogitScorer, arguments),
        execution=spec.execution,
        unit="responses",
    )
    return Scored(sample, examples.head_N, logits)


def run(spec: Spec, context: StageContext) -> StageOutput:
    import numpy as np

    previous = spec.previous
    if previous is None:
        return _output(Decision("fit", "no earlier run to compare with"), None, 0)
    gone = [ref.stage for ref in (previous.records, previous.classify) if not context.store.is_done(ref.stage, ref.digest)]
    if gone:
        return _output(Decision("fit", f"the last run's {' and '.join(gone)} are no longer in the store"), None, 0)

    records = context.fetch(spec.records)
    rows = labelled_rows(records, spec.golden_sources)
    compared = Comparison(spec.drift, Responses.read(context.fetch(previous.records)), Responses.read(records))
    compared.shares()
    compared.lengths()
    ref = context.facts(previous.classify, ClassifyFacts).classifier
    obstacle, new = cannot_serve(spec, context, ref, rows), 0
    if obstacle:
        for name in ("growth", "auc_drop", "h_shift"):
            compared.skip(name, None, obstacle)
    else:
        fit = Fit.of(ref, context)
        fresh = rows.filter(~np.isin(rows["key"].to_numpy(), fit.keys))
        new = len(fresh)
        compared.growth(fit, new)
        if new:
            scored = score(spec, context, fit, fresh)
            compared.auc(fit, scored)
            compared.factors(context, previous.calibrate, spec.calibration, fit, scored)
        else:
            for name in ("auc_drop", "h_shift"):
                compared.skip(name, None, "no training response is new since the fit")
    decision = decide(spec.classifier.refit, compared.rules, ref, obstacle, new)
    context.log.info("%s: %s", decision.decision, decision.reason)
    return _output(decision, compared, len(compared.now.key_N), previous)


def _output(decision: Decision, compared: Comparison | None, rows: int, previous: Previous | None = None) -> StageOutput:
    rules = compared.rules if compared else []
    facts = Facts(
        decision=decision.decision,
        reason=decision.reason,
        keep=decision.keep,
        stop=stop(rules) if decision.decision == "refuse" else None,
        previous=previous,
        sources=compared.sources if compared else {},
        rules=rules,
    )
    metrics = {"reused": float(decision.keep is not None)}
    for one in rules:  # the worst of several sources
        if one.value is not None:
            metrics[one.name] = max(one.value, metrics.get(one.name, one.value))
    return StageOutput(rows=rows, metrics=metrics, facts=facts)


def headline(result: StageResult[Facts]) -> str:
    return f"{result.facts.decision}: {result.facts.reason}"


def event(result: StageResult[Facts], store: Store) -> Event | None:
    """Announce that the data was refused."""
    stop = result.facts.stop
    return Event("drift.refused", stop.message, result.metrics, stops=True) if stop else None


STAGE = Stage(Spec, run, Facts, headline=headline, event=event, section="stage")

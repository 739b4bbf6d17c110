"""Stage ``value``: trust in the labels of every source, and how many golden labels one of them is worth.

Input: records, calibration factors (where the run has them). Output: ``label_trust.parquet`` (record_id, label_source,
label_probability), one row per record of the train split, in their order: the probability that the record's label is the one people would
give, 1 for golden labels, null where there is no preference or no estimate. Facts hold agreement, exchange rate and verdict per source.
Guarantee: no record is judged by a head that saw its prompt. Cost: two passes over the texts and some hundred convex fits on at most
``exchange.max_labels`` labels per source, minutes on one core; no model is loaded. Memory: features of those labels, 2.6 kB a response.

The method of trust is chosen per source (``trust.method: auto``): overlap where enough prompts have both labels, else a reward model of
golden labels, else expectation maximisation, which has a warning: it cannot see a bias that sources share.

Left out: labels of unpaired records, and golden rows of ``golden.parquet``, which have no label.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from dora_core.config.method import ModelConfig, TextConfig
from dora_core.config.valuation import ExchangeConfig, TrustConfig
from dora_core.errors import DataError
from dora_core.evaluation.metrics import estimate_text
from dora_core.strict_model import is_unset
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.spec import NotInDigest, StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.stages._classify_facts import Facts as ClassifyFacts
from tasks.stages._policy_vectors import compute_vectors
from tasks.stages._value_facts import Facts as Facts
from tasks.stages._value_facts import SourceValue
from tasks.stages._value_labels import NO_PREFERENCE, Labels, Overlap
from tasks.stages._value_proxy import compute_proxy, read_mixture, write_proxy
from tasks.stages._value_trust import Estimate
from tasks.tables.artifacts import CALIBRATION_FILE, RECORDS_FILE, TRUST_FILE
from tasks.tables.training_records import Aggregate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dora_core.selection.exchange import Exchange
    from dora_core.selection.proxy import ProxyPairs

LEAST_GOLDEN = 20
"""Least number of golden-labelled prompts for exchange rates."""


class Spec(StageSpec):
    """See the module docstring."""

    stage: ClassVar[str] = "value"
    version: ClassVar[int] = 2  # biased judges in label trust

    records: StageRef
    calibration: StageRef | None
    trust: TrustConfig
    exchange: ExchangeConfig
    golden_sources: list[str]
    aggregate: Aggregate = "mean"
    start: StageRef | None = Field(None, exclude_if=is_unset)
    """With :attr:`model` and :attr:`text` the policy before alignment, for ``exchange.features``; None for text features."""
    model: ModelConfig | None = Field(None, exclude_if=is_unset)
    text: TextConfig | None = Field(None, exclude_if=is_unset)
    shares: Annotated[bool, NotInDigest] = False
    """Also write what a race reads (``tasks/stages/_value_proxy.py``), which is computed in any case."""


def run(spec: Spec, context: StageContext) -> StageOutput:
    records = context.fetch(spec.records) / RECORDS_FILE
    factors = None if spec.calibration is None else context.fetch(spec.calibration) / CALIBRATION_FILE
    labels = read_mixture(records, factors, spec.aggregate, spec.golden_sources, spec.trust, spec.exchange)
    if not (labels.group_R != NO_PREFERENCE).any():
        raise DataError(
            "no training record has a strict preference: there are no labels to value",
            hint="set trust.method: off and exchange.enabled: false, or map rewards with data.train[i].columns.rewards",
        )
    vectors = None
    if spec.exchange.features != "text":
        vectors = compute_vectors(context, records, labels.group_R != NO_PREFERENCE, spec.start or spec.model, spec.text, spec.execution)
    warnings = list[str]()
    computed = compute_proxy(records, labels, spec.trust, spec.exchange, warnings, vectors)
    proxy, overlap, estimate = computed.proxy, computed.overlap, computed.estimate
    exchange, fits = exchange_of(spec, context, labels, proxy.pairs, proxy.record_P, estimate, warnings)
    q_R = estimate.probabilities(records, labels, computed.features, overlap, spec.exchange.folds)
    write_trust(context.path / TRUST_FILE, labels, q_R)
    if spec.shares:
        write_proxy(context.path, proxy)
    facts = Facts(
        golden_labels=labels.count(0),
        golden_prompts=labels.golden_prompts,
        sources=_sources(spec, context, labels, overlap, estimate, exchange),
        golden_loss=estimate.trust.golden_loss if estimate.trust else None,
        fits=fits,
        warnings=warnings,
        **_search_facts(exchange),
    )
    for warning in warnings:
        context.log.warning("%s", warning)
    return StageOutput(rows=len(labels.ids), metrics=_metrics(facts), facts=facts)


def write_trust(path: Path, labels: Labels, q_R: NDArray[np.float64]) -> None:
    """Write one row per train record."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    sources = [None if group == NO_PREFERENCE else labels.names[group] for group in labels.group_R.tolist()]
    probability = pa.array(q_R, pa.float64(), mask=np.isnan(q_R))
    columns = {"record_id": pa.array(labels.ids, pa.string()), "label_source": pa.array(sources, pa.string())}
    pq.write_table(pa.table(columns | {"label_probability": probability}), path, compression="zstd")


# ------------------------------------------------------------------------------------------------------------ exchange


def exchange_of(
    spec: Spec,
    context: StageContext,
    labels: Labels,
    pairs: ProxyPairs,
    record_P: NDArray[np.int64],
    estimate: Estimate,
    warnings: list[str],
) -> tuple[Exchange | None, int]:
    """Search the exchange rates, and count the weightings tried; None if they are off or there is nothing to compare."""
    import numpy as np

    from dora_core.selection.exchange import exchange_rates

    golden = labels.golden_prompts
    if not spec.exchange.enabled or len(labels.names) == 1:
        return None, 0
    if golden < LEAST_GOLDEN or len(np.unique(pairs.fold_P[pairs.golden_P])) < 2:
        warnings.append(f"{golden} prompts have golden labels, at least {LEAST_GOLDEN} are needed for exchange rates: there are none")
        return None, 0
    factors = dict[str, Any]()
    if spec.calibration is not None:
        factors["h"] = labels.factor_R[record_P]
    if estimate.held_out is not None:
        factors["trust"] = estimate.held_out
    if len(factors) == 2:
        factors["h·trust"] = factors["h"] * factors["trust"]
    fits = 0

    def progress(done: int) -> None:
        nonlocal fits
        fits = done
        context.progress(done, max(done, 25 * len(labels.names) * (1 + len(factors)) // 2), "weightings")

    settings = spec.exchange
    exchange = exchange_rates(
        pairs,
        factors,
        few_prompts=settings.few_prompts,
        samples=settings.bootstrap_samples,
        confidence=settings.confidence,
        seed=settings.seed,
        progress=progress,
    )
    return exchange, fits


# --------------------------------------------------------------------------------------------------------------- facts


def _sources(
    spec: Spec, context: StageContext, labels: Labels, overlap: Overlap, estimate: Estimate, exchange: Exchange | None
) -> dict[str, SourceValue]:
    aucs = _aucs(spec, context)
    out = {}
    for group, name in enumerate(labels.names[1:], 1):
        found = exchange.sources.get(group) if exchange else None
        own = labels.group_R == group
        out[name] = SourceValue(
            n=labels.count(group),
            auc=aucs.get(name),
            mean_h=None if spec.calibration is None else float(labels.factor_R[own].mean()),
            method=estimate.method.get(group),
            agreement=estimate.agreement.get(group),
            overlap=len(overlap.agrees.get(group, ())),
            rate=found.rate if found else None,
            worth=found.rate.value * labels.count(group) if found else None,
            verdict=found.verdict if found else None,
            profile={f"{kappa:g}": loss for kappa, loss in found.profile.items()} if found else {},
        )
    return out


def _aucs(spec: Spec, context: StageContext) -> dict[str, float | None]:
    """AUC by source of the classifiers behind the factors; empty without them, or where factors are exact densities."""
    if spec.calibration is None or spec.calibration.stage != "calibrate":
        return {}
    classifier = StageRef.model_validate(context.result(spec.calibration)["inputs"]["classifier"])
    return {name: head.auc for name, head in context.facts(classifier, ClassifyFacts).sources.items()}


def _search_facts(exchange: Exchange | None) -> dict[str, Any]:
    if exchange is None:
        return {}
    names = ("factor", "losses", "golden_alone", "all_alike")
    return {name: getattr(exchange, name) for name in names}


def _metrics(facts: Facts) -> dict[str, float]:
    metrics: dict[str, float | None] = {"golden_labels": facts.golden_labels, "golden_loss": facts.golden_loss}
    metrics |= {"golden_alone_loss": facts.golden_alone, "all_alike_loss": facts.all_alike}
    metrics["best_loss"] = min(facts.losses.values(), default=None)
    for name, source in facts.sources.items():
        metrics[f"agreement_{name}"] = source.agreement.value if source.agreement else None
        metrics[f"exchange_rate_{name}"] = source.rate.value if source.rate else None
    worth = [source.worth for source in facts.sources.values() if source.worth is not None]
    metrics["worth"] = sum(worth) if worth else None
    return {name: float(value) for name, value in metrics.items() if value is not None}


def headline(result: StageResult[Facts]) -> str:
    sources = result.facts.sources
    parts = [
        f"{name} {estimate_text(source.rate, '.2f')} golden labels each ({source.verdict})"
        if source.rate
        else f"{name} agrees {estimate_text(source.agreement, '.2f')}"
        for name, source in sources.items()
    ]
    shown = ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")
    return shown or "no source beside golden"


STAGE = Stage(
    Spec,
    run,
    Facts,
    headline=headline,
    tracked=("worth", "best_loss", "golden_alone_loss"),
    section="stage",
    unplanned="Not part of this run: set exchange.enabled: true for what each source's labels are worth.",
)

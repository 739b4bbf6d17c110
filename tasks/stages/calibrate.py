"""Stage ``calibrate``: one calibration factor h per training response.

Input: records and a ``classify`` stage. Output: ``calibration.parquet`` (zstd, rows in the order of records, train split only):
record_id, response_index, source, fold, c_<source>…, w_<source>…, h, schema_version; one c and w per head, golden has none (w = 1). With
``calibration.ratio: conditional`` they are those of the response given the prompt, and the log-ratios of the prompt are beside them,
prompt_<source>… and golden_prompt (``dora_core/classifier/prompt.py``).
Guarantee: every response was scored by the fold model that never saw its prompt; no NaN. Cost: one forward pass over responses
that *this classifier* never scored; logits of other rows come from the row cache ``scores/<classifier digest>/``
(``tasks/runtime/score_cache.py``), so other settings of h cost no forward pass.

Memory: texts are streamed. Quantiles and the effective sample size of h are statistics of all rows, so numbers are held: about
180 bytes a row at the peak with three heads, measured (keys and their order, folds, sources, logits, h of three forms and a sort).

Responses that do not name their source are the pseudo-source ``unlabelled`` of ``classify``: with shares α_lab of labelled golden
responses and m_u of unlabelled ones, P = α_lab·Q_0 + Σ m_i·Q_i + m_u·U and h = 1/(α_lab + Σ m_i/w_i + m_u/w_u) is as exact as
ever, α_lab = 0 included. w_u is capped at 1/a⁺, its largest possible value (``dora_core/classifier/golden_share.py``), and a⁺·w_u bounds a
row's posterior of being golden from above. Forms ``paper`` and ``released`` need labelled golden responses or every source's name, and
are refused without them.

No shift: a head indistinguishable from golden (``diagnostics.family_interval``; given the prompt if the ratio is conditional) has only
noise as ratio; its c is replaced by the prior 1/(1 + γ), so w = 1. If that holds of every head, h = 1 for all.

Balance: ``facts.balance`` compares text statistics of responses, weighted by h, with golden ones; ``calibration.balance: enforce`` first
tilts the raw h until they agree (``dora_core/balance.py``), as far as 80 % of its effective sample size is kept. Costs
a pass over the texts of at most 20,000 responses and as many golden ones; enforced, over all texts.

Poisoned rows, counted in ``facts.rows``: a response without a number (a logit is NaN) keeps its place with w = 1 for that head, as for
an unknown ratio; more than ``MOST_UNSCORED`` of them are refused. A logit beyond ±30 (infinite: zero probability) is
clipped. Factors above ``cap_quantile`` are lowered to it. No row is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from dora_core.config.method import CalibrationConfig
from dora_core.errors import DataError
from infra.store.store import Store
from tasks.runtime.descriptor import Event, Stage, StageResult
from tasks.runtime.score_cache import ROW_GROUP, CachedRows, Scores, score_rows
from tasks.runtime.spec import StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.stages._calibrate_facts import FactorFacts, GoldenFraction, Histogram, ScoredRows
from tasks.stages._calibrate_facts import Facts as Facts
from tasks.stages._calibration_balance import Sides, balanced_factors
from tasks.stages._calibration_ratios import Heads, Ratios, poisoned, separation, undefined
from tasks.stages._classify_facts import Facts as ClassifyFacts
from tasks.stages.classify import LogitArguments, LogitScorer
from tasks.tables.artifacts import CALIBRATION_FILE, CLASSIFIER_FOLDER, GOLDEN_PROMPT, RECORDS_FILE, UNLABELLED
from tasks.tables.rows import RowIndex, read_index, rebatch, record_batches, responses_of, text_rows

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from dora_core.classifier.golden_share import GoldenShare

SCHEMA_VERSION = 2
HISTOGRAM_BINS = 40


class Spec(StageSpec):
    """See the module docstring."""

    stage: ClassVar[str] = "calibrate"
    version: ClassVar[int] = 3  # the ratio of responses given the prompt; balance

    records: StageRef
    classifier: StageRef
    calibration: CalibrationConfig
    golden_sources: list[str]


def score(spec: Spec, context: StageContext, classifier: StageRef, records: Path, index: RowIndex, fold_N: NDArray[np.int32]) -> Scores:
    """Logits (``logit_<source>``) of every training row."""
    import pyarrow as pa

    def rows(positions: NDArray[np.int64]) -> Iterator[pa.Table]:
        for texts in text_rows(records, positions, "train", plain=True):
            at = texts["position"].to_numpy()
            yield pa.table({"key": index.key_N[at], "prompt": texts["prompt"], "response": texts["response"], "fold": fold_N[at]})

    return score_rows(
        context,
        CachedRows(context, f"scores/{classifier.digest}"),
        index.key_N,
        rows,
        summed=["tokens", "padded"],
        name="scores",
        worker=partial(LogitScorer, LogitArguments(store_uri=context.store.uri, execution=spec.execution, classifier=classifier)),
        execution=spec.execution,
        unit="responses",
    )


# ------------------------------------------------------------------------------------------------------------ the stage


def run(spec: Spec, context: StageContext) -> StageOutput:
    import numpy as np

    from dora_core.calibration import FORMS, calibrate, effective_sample_size, factor, mixture_shares, quantiles
    from dora_core.classifier.scoring import read_meta
    from dora_core.data.records import fold_of

    classifier = context.facts(spec.classifier, ClassifyFacts).classifier
    fit = context.facts(classifier, ClassifyFacts)
    meta = read_meta(context.fetch(classifier) / CLASSIFIER_FOLDER)
    records = context.fetch(spec.records) / RECORDS_FILE
    index = read_index(records, "train")
    fold_N = fold_of(index.prompt_hash_N, meta.folds).astype(np.int32)
    mixture = Mixture.of(index, spec.golden_sources)
    heads = mixture.heads
    _check_sources(spec, mixture.golden, UNLABELLED in heads)

    scores = score(spec, context, classifier, records, index, fold_N)
    # A source that left the mixture keeps its head in the classifier but has no share in P.
    ratios = Ratios(scores, Heads.of(heads, meta, fit, spec.calibration.ratio))
    rows = poisoned(scores, ratios.heads, len(index))
    same = [name for name, prior in zip(heads, ratios.heads.prior, strict=True) if prior]
    shares = mixture_shares(mixture.counts, spec.calibration.shares, mixture.golden, heads)
    forms = {form: np.empty(len(index)) for form in FORMS if not undefined(form, shares, heads)}
    for start in range(0, len(index), ROW_GROUP):
        part = slice(start, start + ROW_GROUP)
        c, _ = ratios.of(part.start, part.stop)
        for form, h_N in forms.items():
            own_N, prompts = mixture.share_of[index.source_N[part]], ratios.prompts(part.start, part.stop)
            h_N[part] = factor(form, c, ratios.heads.gamma, shares, own_N, prompts)
    no_shift = len(same) == len(heads)
    raw = np.ones(len(index)) if no_shift else forms[spec.calibration.form]
    sides = Sides.read(records.parent, mixture.share_of[index.source_N] == 0, ratios, shares)
    raw, ridge, unbalanced = balanced_factors(sides, raw, records, enforce=spec.calibration.balance == "enforce" and not no_shift)
    result = calibrate(raw, spec.calibration)
    bad = int((~np.isfinite(result.h)).sum())
    assert bad == 0, f"{bad} factors are not finite: clipped logits and shares > 0 exclude it"
    _write(context.path / CALIBRATION_FILE, records, ratios, fold_N, result.h)

    padded, ess = scores.totals["padded"], {form: effective_sample_size(h) for form, h in forms.items()}
    by_source = _grouped(result.h, index)
    warnings = _no_shift_warnings(spec.calibration, same, no_shift, fit) + _warnings(spec.calibration, result.ess, result.tau) + unbalanced
    if rows["unscored"]:
        warnings.append(f"{rows['unscored']} of {rows['in']} responses got no number from the classifier: their ratio is set to 1")
    for warning in warnings:
        context.log.warning("%s", warning)
    balance = sides.facts(result.h, ridge) if sides else None
    facts = Facts(
        **scores.facts.dump(),
        padding_waste=1.0 - scores.totals["tokens"] / padded if padded else None,
        form=spec.calibration.form,
        ratio=spec.calibration.ratio,
        h={name: FactorFacts(n=len(v), mean=float(v.mean()), quantiles=quantiles(v)) for name, v in by_source.items()},
        histogram=_histogram(result.h, by_source),
        ess=result.ess,
        ess_by_form=ess,
        capped_fraction=result.capped_fraction,
        rows=ScoredRows(**rows, capped=round(result.capped_fraction * len(index))),
        nan=bad,
        tau=result.tau,
        shares={"golden": float(shares[0])} | {name: float(m) for name, m in zip(heads, shares[1:], strict=True)},
        alpha=_alpha(shares, heads, fit.unlabelled),
        no_shift=no_shift,
        balance=balance,
        warnings=warnings,
    )
    names = ("scored_rows", "reused_rows", "rows_per_second", "padding_waste", "ess", "capped_fraction", "tau")
    metrics = {name: getattr(facts, name) for name in names}
    metrics |= {f"ess_{form}": value for form, value in ess.items()} | {"h_max": float(result.h.max()), "nan": bad}
    metrics |= {"smd_max_before": balance.worst_before, "smd_max": balance.worst} if balance else {}
    return StageOutput(rows=len(index), metrics={k: v for k, v in metrics.items() if v is not None}, facts=facts)


class Mixture(NamedTuple):
    """Sources of the training responses.

    Attributes:
        counts: responses by source; :data:`UNLABELLED` where the data names none.
        golden: names of golden sources.
        heads: names of all others, sorted: the order of heads and shares.
        share_of: position in (golden, *heads) of each source of the index; the last is that of −1, no source.
    """

    counts: dict[str, int]
    golden: list[str]
    heads: list[str]
    share_of: NDArray[np.int64]

    @classmethod
    def of(cls, index: RowIndex, golden_sources: list[str]) -> Mixture:
        """Count the sources of all rows."""
        import numpy as np

        from dora_core.data.records import is_golden_source

        named = [*(name or UNLABELLED for name in index.names), UNLABELLED]  # the last for −1, no source
        counts = dict.fromkeys(sorted(named), 0)
        for name, count in zip(named, np.bincount(index.source_N % len(named), minlength=len(named)).tolist(), strict=True):
            counts[name] += count
        counts = {name: count for name, count in counts.items() if count}
        golden = [name for name in counts if is_golden_source(name, golden_sources)]
        heads = [name for name in counts if name not in golden]
        return cls(counts, golden, heads, np.array([1 + heads.index(name) if name in heads else 0 for name in named]))


def _check_sources(spec: Spec, golden: list[str], unlabelled: bool) -> None:
    form = spec.calibration.form
    if not golden and not unlabelled:
        raise DataError(
            "no response of the mixture comes from a golden source, so the golden share α is 0 and h has no bound",
            hint="trusted responses must be part of the preference data, not only of data.golden; check data.golden_sources",
        )
    if unlabelled and form == "released":
        raise DataError(
            "calibration.form is released, which needs every response's source, and some have none",
            hint="use form mixture, or give the rows a source (data.train[].source or a sources column)",
        )
    if not golden and form == "paper":
        raise DataError(
            "calibration.form is paper, which divides by the share of labelled golden responses, and there are none",
            hint="use form mixture, or name the source of the trusted responses",
        )


def _alpha(shares: np.ndarray, heads: list[str], unlabelled: GoldenShare | None) -> GoldenFraction:
    """Golden share of the mixture, α_lab + m_u·a⁺ with its interval; without unlabelled rows it is known."""
    known = float(shares[0])
    if unlabelled is None or UNLABELLED not in heads:
        return GoldenFraction(value=known, low=known, high=known, estimated=False)
    value, low, high = (known + float(shares[1 + heads.index(UNLABELLED)]) * a for a in (unlabelled.value, unlabelled.low, unlabelled.high))
    return GoldenFraction(value=value, low=low, high=high, estimated=True)


def _no_shift_warnings(config: CalibrationConfig, same: list[str], no_shift: bool, fit: ClassifyFacts) -> list[str]:
    warnings = []
    for name in same:
        found = separation(fit.sources[name], config.ratio)
        low, high = found.auc_family_low, found.auc_family_high
        interval = "AUC undefined" if low is None or high is None else f"AUC interval [{low:.2f}, {high:.2f}] contains or lies below 0.5"
        warnings.append(f"{name} cannot be told from golden ({interval}): its ratio is set to 1")
    if no_shift:
        warnings.append("no source can be told from golden: this data needs no calibration")
    return warnings


def _warnings(config: CalibrationConfig, ess: float, tau: float) -> list[str]:
    warnings = []
    if ess < 0.1:
        warnings.append(f"effective sample size is {ess:.1%} of the responses: few of them decide; consider calibration.temper: auto")
    if config.temper == "auto" and tau < 1.0:
        warnings.append(f"h was tempered with τ = {tau:.3f} to keep the effective sample size above ess_floor = {config.ess_floor}")
    return warnings


def _write(path: Path, records: Path, ratios: Ratios, fold_N: NDArray[np.int32], h_N: NDArray[np.float64]) -> None:
    """Write the output, one row group at a time."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = (responses_of(batch) for batch in record_batches(records, ["record_id", "sources"], "train"))
    writer: pq.ParquetWriter | None = None
    stop = 0
    for part in rebatch(rows, ROW_GROUP):
        start, stop = stop, stop + part.num_rows
        c, w = ratios.of(start, stop)
        columns: dict[str, Any] = {name: part[name] for name in ("record_id", "response_index", "source")} | {"fold": fold_N[start:stop]}
        columns |= {f"{letter}_{name}": x[:, i] for letter, x in (("c", c), ("w", w)) for i, name in enumerate(ratios.heads.names)}
        if (prompts := ratios.prompts(start, stop)) is not None:
            columns |= {f"prompt_{name}": prompts[:, 1 + i] for i, name in enumerate(ratios.heads.names)}
            columns[GOLDEN_PROMPT] = prompts[:, 0]
        columns |= {"h": h_N[start:stop], "schema_version": np.full(stop - start, SCHEMA_VERSION, dtype=np.int32)}
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None, "a mixture has at least one row"
    writer.close()


def _grouped(h_N: NDArray[np.float64], index: RowIndex) -> dict[str, NDArray[np.float64]]:
    """h by the name of the source, sorted by name."""
    import numpy as np

    shown = [*(name or "(unknown)" for name in index.names), "(unknown)"]
    groups = {name: h_N[np.isin(index.source_N % len(shown), [i for i, other in enumerate(shown) if other == name])] for name in set(shown)}
    return {name: groups[name] for name in sorted(groups) if len(groups[name])}


def _histogram(h_N: NDArray[np.float64], by_source: dict[str, NDArray[np.float64]]) -> Histogram:
    """Counts per source over common equal-width bins from 0 to the largest h."""
    import numpy as np

    edges = np.linspace(0.0, float(h_N.max()), HISTOGRAM_BINS + 1)
    return Histogram(edges=edges.tolist(), counts={name: np.histogram(v, edges)[0].tolist() for name, v in by_source.items()})


def headline(result: StageResult[Facts]) -> str:
    return f"effective sample size {result.facts.ess:.0%}"


def event(result: StageResult[Facts], store: Store) -> Event | None:
    """Announce the calibration factors."""
    return Event("calibration.ready", f"{result.rows} responses have calibration factors", result.metrics)


STAGE = Stage(
    Spec,
    run,
    Facts,
    headline=headline,
    tracked=("ess", "smd_max"),
    event=event,
    section="stage",
    unplanned="Not part of this run: the {objective} objective does not use calibration factors.",
)

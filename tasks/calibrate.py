"""Stage ``calibrate``: one calibration factor h per training response.

Input: records and a ``classify`` stage. Output: ``calibration.parquet`` (zstd, rows in the order of records, train split only):
record_id, response_index, source, fold, c_<source>…, w_<source>…, h, schema_version; one c and w per head, golden has none (w = 1).
Guarantee: every response was scored by the fold model that never saw its prompt; no NaN. Cost: one forward pass over responses
that *this classifier* never scored; scores of others are taken from ``scores/<classifier digest>/`` in the store.

That ledger is a folder of immutable Parquet parts (key, logits), each named by the sha256 of its content: a part that is torn or
altered does not have its name and is not read, concurrent writers never touch one file, and it works through any store. It holds
logits, so other settings of h cost no forward pass.

Responses that do not name their source are the pseudo-source ``unlabelled`` of ``classify``: with shares α_lab of labelled golden
responses and m_u of unlabelled ones, P = α_lab·Q_0 + Σ m_i·Q_i + m_u·U and h = 1/(α_lab + Σ m_i/w_i + m_u/w_u) is as exact as
ever, α_lab = 0 included. w_u is capped at 1/a⁺, its largest possible value (``dora_core/classifier_unlabelled.py``), and a⁺·w_u bounds a
row's posterior of being golden from above. Forms ``paper`` and ``released`` need what such data lack and are refused.

No shift: a head that cannot be told from golden (``classifier_report.family_interval``) has no ratio but noise; its c is replaced by
the prior 1/(1 + γ), so w = 1. If that holds of every head, h = 1 for all.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dora_core.config import CalibrationConfig
from dora_core.errors import DataError
from infra.store import sha256_file
from tasks.classify import FOLDER, UNLABELLED, LogitScorer, score_arguments, training_rows
from tasks.stage import StageContext, StageOutput, StageRef, StageSpec, main

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

SCHEMA_VERSION = 1
HISTOGRAM_BINS = 40
ROW_GROUP = 65_536


class Spec(StageSpec):
    """See the module docstring."""

    stage: ClassVar[str] = "calibrate"
    version: ClassVar[int] = 2

    records: StageRef
    classifier: StageRef
    calibration: CalibrationConfig
    golden_sources: list[str]


# ----------------------------------------------------------------------------------------------------------- the ledger


class ScoreLedger:
    """Logits of one classifier by row key; see the module docstring."""

    def __init__(self, context: StageContext, classifier: StageRef):
        self._store, self._log = context.store, context.log
        self._folder = f"scores/{classifier.digest}"

    def read(self) -> pa.Table | None:
        """(key, logit_<source>…) of all valid parts, one row per key; None where nothing was ever scored."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        parts = []
        for name in self._store.list(self._folder):
            if not name.endswith(".parquet") or name.startswith("."):
                continue
            path = self._store.local_root / self._folder / name
            if not _is_whole(path):
                self._store.download(f"{self._folder}/{name}")
            if _is_whole(path):
                parts.append(pq.read_table(path))
            else:
                self._log.warning("%s/%s is damaged and is not used; its rows are scored again", self._folder, name)
        if not parts:
            return None
        table = pa.concat_tables(parts)
        return table.take(np.unique(table["key"].to_numpy(), return_index=True)[1])

    def add(self, scores: pa.Table) -> None:
        """Store new rows durably: temporary name, fsync, rename to the content's checksum."""
        import pyarrow.parquet as pq

        folder = self._store.local_root / self._folder
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{os.getpid()}.tmp"
        with temporary.open("wb") as file:
            pq.write_table(scores, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        name = f"{sha256_file(temporary)}.parquet"
        os.replace(temporary, folder / name)
        self._store.upload(f"{self._folder}/{name}", folder / name)


def _is_whole(part: Path) -> bool:
    return part.exists() and sha256_file(part) == part.stem


def score(spec: Spec, context: StageContext, classifier: StageRef, rows: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
    """Logits (key, logit_<source>…) of every row of ``rows``, in their order, and facts about the work.

    ``rows_per_second`` and ``padding_waste`` (share of padded tokens that are padding) are of new rows; None where there are none.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from tasks.shards import run_shards

    ledger = ScoreLedger(context, classifier)
    known = ledger.read()
    keys = rows["key"].to_numpy()
    first = np.unique(keys, return_index=True)[1]  # the same text twice is scored once
    new = np.sort(first if known is None else first[~np.isin(keys[first], known["key"].to_numpy())])
    facts: dict[str, Any] = {"scored_rows": len(new), "reused_rows": len(rows) - len(new), "rows_per_second": None, "padding_waste": None}
    if len(new):
        started = time.monotonic()
        scored = run_shards(
            context,
            rows.take(new).select(["key", "prompt", "response", "fold"]),
            name="scores",
            worker=LogitScorer,
            arguments=score_arguments(context.fetch(classifier) / FOLDER, spec.execution),
            execution=spec.execution,
            unit="responses",
        )
        facts["rows_per_second"] = len(new) / (time.monotonic() - started)
        facts["padding_waste"] = 1.0 - pc.sum(scored["tokens"]).as_py() / pc.sum(scored["padded"]).as_py()
        logits = scored.drop_columns(["tokens", "padded"])
        ledger.add(logits)
        known = logits if known is None else pa.concat_tables([known, logits])
    assert known is not None, "there is at least one row"
    known = known.sort_by("key")
    return known.take(np.searchsorted(known["key"].to_numpy(), keys)), facts


# ------------------------------------------------------------------------------------------------------------ the stage


def run(spec: Spec, context: StageContext) -> StageOutput:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dora_core.calibration import FORMS, calibrate, density_ratios, effective_sample_size, factor, mixture_shares, probabilities
    from dora_core.classifier import read_meta
    from dora_core.records import fold_of, is_golden_source

    classifier = StageRef(**context.result(spec.classifier)["facts"]["classifier"])
    fit = context.result(classifier)["facts"]
    meta = read_meta(context.fetch(classifier) / FOLDER)
    rows = training_rows(context.fetch(spec.records))
    rows = rows.append_column("fold", pa.array(fold_of(rows["prompt_hash"].to_numpy(), meta.folds).astype(np.int32)))
    source = rows["source"].to_pylist()
    named = [name or UNLABELLED for name in source]
    counts = {name: named.count(name) for name in sorted(set(named))}
    golden = [name for name in counts if is_golden_source(name, spec.golden_sources)]
    heads = [name for name in counts if name not in golden]
    _check_sources(spec, golden, UNLABELLED in heads)

    scores, facts = score(spec, context, classifier, rows)
    # A source that left the mixture keeps its head in the classifier but has no share in P.
    c = probabilities(np.column_stack([scores[f"logit_{name}"].to_numpy() for name in heads]))
    gamma = np.array([meta.gamma[meta.sources.index(name)] for name in heads])
    same = [name for name in heads if not fit["sources"][name]["told_apart"]]
    for name in same:
        c[:, heads.index(name)] = 1.0 / (1.0 + gamma[heads.index(name)])
    if UNLABELLED in heads and UNLABELLED not in same:
        own_head = heads.index(UNLABELLED)
        highest = 1.0 / (1.0 + gamma[own_head] * fit["unlabelled"]["value"])  # c of w = 1/a⁺
        c[:, own_head] = np.minimum(c[:, own_head], highest)
    w = density_ratios(c, gamma)
    shares = mixture_shares(counts, spec.calibration.shares, golden, heads)
    own = np.array([0 if name in golden else 1 + heads.index(name) for name in named])
    undefined = {"paper": shares[0] == 0, "released": UNLABELLED in heads}
    forms = {form: factor(form, c, gamma, shares, own) for form in FORMS if not undefined.get(form)}
    no_shift = len(same) == len(heads)
    result = calibrate(np.ones(len(rows)) if no_shift else forms[spec.calibration.form], spec.calibration)
    bad = int((~np.isfinite(result.h)).sum())
    assert bad == 0, f"{bad} factors are not finite: clipped logits and shares > 0 exclude it"

    columns: dict[str, Any] = {name: rows[name] for name in ("record_id", "response_index", "source", "fold")}
    columns |= {f"c_{name}": c[:, i] for i, name in enumerate(heads)} | {f"w_{name}": w[:, i] for i, name in enumerate(heads)}
    columns |= {"h": result.h, "schema_version": np.full(len(rows), SCHEMA_VERSION, dtype=np.int32)}
    pq.write_table(pa.table(columns), context.path / "calibration.parquet", compression="zstd", row_group_size=ROW_GROUP)

    ess = {form: effective_sample_size(h) for form, h in forms.items()}
    facts |= {
        "form": spec.calibration.form,
        "h": _by_source(result.h, source),
        "histogram": _histogram(result.h, source),
        "ess": result.ess,
        "ess_by_form": ess,
        "capped_fraction": result.capped_fraction,
        "nan": bad,
        "tau": result.tau,
        "shares": {"golden": float(shares[0])} | {name: float(m) for name, m in zip(heads, shares[1:], strict=True)},
        "alpha": _alpha(shares, heads, fit["unlabelled"]),
        "no_shift": no_shift,
        "warnings": _no_shift_warnings(same, no_shift, fit["sources"]) + _warnings(spec.calibration, result.ess, result.tau),
    }
    for warning in facts["warnings"]:
        context.log.warning("%s", warning)
    metrics = {
        name: facts[name] for name in ("scored_rows", "reused_rows", "rows_per_second", "padding_waste", "ess", "capped_fraction", "tau")
    }
    metrics |= {f"ess_{form}": value for form, value in ess.items()} | {"h_max": float(result.h.max()), "nan": bad}
    return StageOutput(rows=len(rows), metrics={k: v for k, v in metrics.items() if v is not None}, facts=facts)


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


def _alpha(shares: np.ndarray, heads: list[str], unlabelled: dict[str, float] | None) -> dict[str, Any]:
    """Golden share of the mixture, α_lab + m_u·a⁺ with its interval; without unlabelled rows it is known."""
    if unlabelled is None or UNLABELLED not in heads:
        return {"value": float(shares[0]), "low": float(shares[0]), "high": float(shares[0]), "estimated": False}
    share = float(shares[1 + heads.index(UNLABELLED)])
    return {key: float(shares[0]) + share * unlabelled[key] for key in ("value", "low", "high")} | {"estimated": True}


def _no_shift_warnings(same: list[str], no_shift: bool, sources: dict[str, Any]) -> list[str]:
    warnings = []
    for name in same:
        low, high = sources[name]["auc_family_low"], sources[name]["auc_family_high"]
        interval = "AUC undefined" if low is None else f"AUC interval [{low:.2f}, {high:.2f}] contains or lies below 0.5"
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


def _grouped(h: np.ndarray, source: list[str | None]) -> dict[str, np.ndarray]:
    import numpy as np

    names = np.array([name or "(unknown)" for name in source])
    return {str(name): h[names == name] for name in np.unique(names)}


def _by_source(h: np.ndarray, source: list[str | None]) -> dict[str, Any]:
    from dora_core.calibration import quantiles

    return {name: {"n": len(v), "mean": float(v.mean()), "quantiles": quantiles(v)} for name, v in _grouped(h, source).items()}


def _histogram(h: np.ndarray, source: list[str | None]) -> dict[str, Any]:
    """Counts per source over common equal-width bins from 0 to the largest h."""
    import numpy as np

    edges = np.linspace(0.0, float(h.max()), HISTOGRAM_BINS + 1)
    return {"edges": edges.tolist(), "counts": {name: np.histogram(v, edges)[0].tolist() for name, v in _grouped(h, source).items()}}


if __name__ == "__main__":
    main(Spec, run)

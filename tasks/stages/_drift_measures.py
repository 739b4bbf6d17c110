"""Measures of the ``drift`` stage: the differences between two runs' responses, and a rule for each (``drift.py`` decides)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dora_core.config.method import CalibrationConfig
from dora_core.config.rounds import DriftConfig
from dora_core.strict_model import StrictModel
from tasks.runtime.spec import StageRef
from tasks.runtime.stage import StageContext
from tasks.stages._calibrate_facts import Facts as CalibrateFacts
from tasks.stages._calibration_ratios import Heads, undefined
from tasks.stages._classify_facts import Facts as ClassifyFacts
from tasks.stages._drift_facts import AucChange, Counts, Rule, Shares, Shift, SourceDrift
from tasks.tables.artifacts import CALIBRATION_FILE, CLASSIFIER_FOLDER, FITTED_KEYS_FILE, GOLDEN_PROMPT, RECORDS_FILE, UNLABELLED
from tasks.tables.rows import read_index, record_batches

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from dora_core.classifier.scoring import Meta

Verdict = Literal["ok", "refit", "refuse"]

JUDGEABLE = 50  # rows on either side; measures of fewer are not judged


# ---------------------------------------------------------------------------------------------------------------- rules


def rule(config: DriftConfig, name: str, source: str | None, value: float, chance: float, message: str) -> Rule:
    """Judge a measure by ``refit_<name>`` and ``refuse_<name>``, which apply to ``value − chance``."""
    refit_at, refuse_at = getattr(config, f"refit_{name}", None), getattr(config, f"refuse_{name}", None)
    verdict: Verdict = "ok"
    note = ""
    limits: list[tuple[Verdict, float | None]] = [("refit", refit_at), ("refuse", refuse_at)]
    for stricter, limit in limits:
        if limit is not None and value - chance > limit:
            verdict, note = stricter, f": beyond drift.{stricter}_{name} = {limit:g}"
    return Rule(
        name=name,
        source=source,
        value=value,
        chance=chance,
        refit_at=refit_at,
        refuse_at=refuse_at,
        verdict=verdict,
        message=message + note,
    )


def not_judged(config: DriftConfig, name: str, source: str | None, why: str) -> Rule:
    limits = {f"{verdict}_at": getattr(config, f"{verdict}_{name}", None) for verdict in ("refit", "refuse")}
    message = f"{name} not judged: {why}"
    return Rule(name=name, source=source, value=None, chance=None, **limits, verdict="not judged", message=message)


# ----------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Responses:
    """Train responses of one run as numbers, shape (N,) each; ``source_N`` are positions in ``names``."""

    key_N: NDArray[np.uint64]
    prompt_N: NDArray[np.uint64]
    source_N: NDArray[np.int32]
    length_N: NDArray[np.int32]
    names: list[str]

    @classmethod
    def read(cls, records: Path) -> Responses:
        import numpy as np
        import pyarrow.compute as pc

        index = read_index(records / RECORDS_FILE, "train")
        named = [*(name or UNLABELLED for name in index.names), UNLABELLED]  # the last for −1, no source
        names, place = np.unique(named, return_inverse=True)
        source_N = place.astype(np.int32)[index.source_N]
        batches = record_batches(records / RECORDS_FILE, ["responses"], "train")
        lengths = [pc.utf8_length(pc.list_flatten(batch["responses"])).to_numpy() for batch in batches]
        return cls(index.key_N, index.prompt_hash_N, source_N, np.concatenate([np.empty(0, np.int32), *lengths]), names.tolist())

    def of(self, name: str) -> NDArray[np.bool_]:
        import numpy as np

        return self.source_N == self.names.index(name) if name in self.names else np.zeros(len(self.key_N), bool)

    def counts(self, names: list[str]) -> NDArray[np.float64]:
        import numpy as np

        return np.array([self.of(name).sum() for name in names], dtype=np.float64)

    def prompts(self, rows: NDArray[np.bool_] | None = None) -> int:
        import numpy as np

        return len(np.unique(self.prompt_N if rows is None else self.prompt_N[rows]))


@dataclass(frozen=True)
class Fit:
    """The classifiers of the last run: the stage that fitted them (perhaps in an earlier run) and its facts."""

    ref: StageRef
    folder: Path
    facts: ClassifyFacts

    @classmethod
    def of(cls, ref: StageRef, context: StageContext) -> Fit:
        return cls(ref, context.fetch(ref) / CLASSIFIER_FOLDER, context.facts(ref, ClassifyFacts))

    @cached_property
    def meta(self) -> Meta:
        from dora_core.classifier.scoring import read_meta

        return read_meta(self.folder)

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """Keys of the rows that existed at the fit."""
        import pyarrow.parquet as pq

        keys: NDArray[np.uint64] = pq.read_table(self.folder / FITTED_KEYS_FILE)["key"].to_numpy()
        return keys


@dataclass(frozen=True)
class Scored:
    """New rows under the earlier classifiers: ``rows`` as of ``labelled_rows``, ``head_N`` as of ``heads_of`` (``_classify_rows.py``) and
    ``logits`` (``logit_<source>``), in the same order."""

    rows: pa.Table
    head_N: NDArray[np.int64]
    logits: pa.Table


# -------------------------------------------------------------------------------------------------------------- compare


class Comparison:
    """Collects measures per source, and the rules.

    Attributes:
        names: sources that have responses before or now, sorted.
        new_N: which responses are new since the last run.
    """

    def __init__(self, config: DriftConfig, before: Responses, now: Responses):
        import numpy as np

        self.config, self.before, self.now = config, before, now
        self.new_N = ~np.isin(now.key_N, before.key_N)
        self.names = [n for n in sorted({*before.names, *now.names}) if before.of(n).any() or now.of(n).any()]
        self.rules: list[Rule] = []
        self._responses: dict[str, Counts] = {}
        self._shares: dict[str, Shares] = {}
        self._lengths: dict[str, Shift] = {}
        self._aucs: dict[str, AucChange] = {}
        self._factors: dict[str, Shift] = {}

    @property
    def sources(self) -> dict[str, SourceDrift]:
        """Facts of every source, of the parts that were compared."""
        parts: dict[str, Mapping[str, StrictModel]] = {
            "responses": self._responses,
            "share": self._shares,
            "length": self._lengths,
            "auc": self._aucs,
            "h": self._factors,
        }
        return {name: SourceDrift(**{part: found[name] for part, found in parts.items() if name in found}) for name in self.names}

    def judge(self, name: str, source: str | None, value: float, chance: float, message: str) -> None:
        self.rules.append(rule(self.config, name, source, value, chance, message))

    def skip(self, name: str, source: str | None, why: str) -> None:
        self.rules.append(not_judged(self.config, name, source, why))

    def shares(self) -> None:
        import numpy as np

        from dora_core.evaluation.distances import total_variation, total_variation_chance

        counts = self.before.counts(self.names), self.now.counts(self.names)
        new = [int((self.now.of(name) & self.new_N).sum()) for name in self.names]
        p, q = (count / count.sum() for count in counts)
        for i, name in enumerate(self.names):
            self._responses[name] = Counts(before=int(counts[0][i]), now=int(counts[1][i]), new=new[i])
            self._shares[name] = Shares(before=float(p[i]), now=float(q[i]))
        value, chance = total_variation(p, q), total_variation_chance(p, q, self.before.prompts(), self.now.prompts())
        most = int(np.abs(q - p).argmax())
        moved = f"{self.names[most]} from {p[most]:.0%} to {q[most]:.0%}"
        self.judge("share_shift", None, value, chance, f"mixture shares moved by {value:.2f} (chance {chance:.2f}), most of all {moved}")

    def lengths(self) -> None:
        for name in self.names:
            old, new = self.before.of(name), self.now.of(name) & self.new_N
            prompts = self.before.prompts(old), self.now.prompts(new)
            lengths = self.before.length_N[old], self.now.length_N[new]
            self._lengths[name] = self.distance("length_shift", name, *lengths, prompts, "lengths", " characters")

    def distance(
        self, rule: str, name: str, old_N: NDArray[Any], new_N: NDArray[Any], prompts: tuple[int, int], quantity: str, unit: str = ""
    ) -> Shift:
        """Judge the Kolmogorov-Smirnov distance of two samples."""
        from dora_core.calibration import quantiles
        from dora_core.evaluation.distances import ks_chance, ks_distance

        before, new = (quantiles(sample) if len(sample) else None for sample in (old_N, new_N))
        if min(len(old_N), len(new_N)) < JUDGEABLE:
            why = f"{len(old_N)} earlier and {len(new_N)} new responses of {name}, {JUDGEABLE} of each are needed"
            self.skip(rule, name, why)
            return Shift(before=before, new=new, ks=None)
        assert before is not None and new is not None
        value, chance = ks_distance(old_N, new_N), ks_chance(*prompts)
        medians = f"median {before['0.5']:.3g}, now {new['0.5']:.3g}{unit}"
        self.judge(rule, name, value, chance, f"{quantity} of {name} moved by {value:.2f} (chance {chance:.2f}), {medians}")
        return Shift(before=before, new=new, ks=value)

    def growth(self, fit: Fit, new: int) -> None:
        """``new``: number of rows, golden ones included, that are new since the fit."""
        growth = new / len(fit.keys)
        self.judge("growth", None, growth, 0.0, f"{new} training responses are new since the fit, {growth:.0%} of those fitted")

    def auc(self, fit: Fit, scored: Scored) -> None:
        import numpy as np

        from dora_core.classifier.diagnostics import auc, auc_resamples
        from dora_core.classifier.model import GOLDEN
        from dora_core.evaluation.distances import NORMAL_99

        golden = scored.head_N == GOLDEN
        for head, name in enumerate(fit.meta.sources):
            if name not in self.names:
                continue
            at_fit, of_source = fit.facts.sources[name], scored.head_N == head
            then, low, high = at_fit.auc, at_fit.auc_low, at_fit.auc_high
            if min(golden.sum(), of_source.sum()) < JUDGEABLE or then is None or low is None or high is None:
                self._aucs[name] = AucChange(fit=then, new=None)
                counts = f"{of_source.sum()} responses of {name} and {golden.sum()} golden ones are new"
                self.skip("auc_drop", name, f"{counts} since the fit, {JUDGEABLE} of each are needed")
                continue
            own = golden | of_source
            logits, prompts = scored.logits[f"logit_{name}"].to_numpy()[own], scored.rows["prompt_hash"].to_numpy()[own]
            now = float(auc(logits, golden[own])[0])
            self._aucs[name] = AucChange(fit=then, new=now)
            error_at_fit = (high - low) / (2 * 1.96)
            chance = NORMAL_99 * float(np.hypot(auc_resamples(logits, golden[own], prompts).std(), error_at_fit))
            drop = then - now
            aucs = f"AUC of {name} {then:.3f} at the fit, {now:.3f} on {own.sum()} responses new since"
            self.judge("auc_drop", name, drop, chance, f"{aucs}, a fall of {drop:.3f} (chance {chance:.3f})")

    def factors(self, context: StageContext, calibrate: StageRef | None, config: CalibrationConfig, fit: Fit, scored: Scored) -> None:
        """Compare h of the last run's rows with h of the scored rows that are new since: both raw, with the last run's shares."""
        import numpy as np

        from dora_core.calibration import factor
        from dora_core.classifier.model import GOLDEN

        if calibrate is None:
            return self.skip("h_shift", None, "the last run has no calibration")
        last, form = context.facts(calibrate, CalibrateFacts), config.form
        if last.ratio != config.ratio:
            return self.skip("h_shift", None, f"the last run's calibration.ratio was {last.ratio}, it is {config.ratio}")
        shares_of = dict(last.shares)
        alpha, names = shares_of.pop("golden"), list(shares_of)
        shares, heads = np.array([alpha, *shares_of.values()]), Heads.of(names, fit.meta, fit.facts, config.ratio)
        if undefined(form, shares, names):
            return self.skip("h_shift", None, f"form {form} is not defined for the last run's data")

        place = {name: 1 + i for i, name in enumerate(names)}  # 0 is golden
        own_of = np.array([place.get(name, 0) for name in self.before.names])
        old_h, start = np.empty(len(self.before.key_N)), 0
        for batch in _calibrated(context.fetch(calibrate) / CALIBRATION_FILE, heads):
            part = slice(start, start := start + batch.num_rows)
            c = np.column_stack([batch[f"c_{name}"] for name in names])
            old_h[part] = factor(form, c, heads.gamma, shares, own_of[self.before.source_N[part]], heads.prompts(batch))
        source_N = np.array([name or UNLABELLED for name in scored.rows["source"].to_pylist()], dtype=object)
        known = (scored.rows["position"].to_numpy() >= 0) & ~np.isin(scored.rows["key"].to_numpy(), self.before.key_N)
        known &= (scored.head_N == GOLDEN) | np.isin(source_N, names)
        own_N = np.array([place.get(name, 0) for name in source_N])
        new_h = factor(form, heads.probabilities(scored.logits), heads.gamma, shares, own_N, heads.prompts(scored.logits))
        prompt_N = scored.rows["prompt_hash"].to_numpy()
        for name in self.names:
            old, new = self.before.of(name), known & (source_N == name)
            prompts = self.before.prompts(old), len(np.unique(prompt_N[new]))
            self._factors[name] = self.distance("h_shift", name, old_h[old], new_h[new], prompts, "h")
        return None


def _calibrated(table: Path, heads: Heads) -> Iterator[pa.RecordBatch]:
    """c and, if the ratio is conditional, the prompts' log-ratios of a calibration table, in the order of the train responses."""
    import pyarrow.parquet as pq

    columns = [f"c_{name}" for name in heads.names]
    if heads.conditional:
        columns += [*(f"prompt_{name}" for name in heads.names), GOLDEN_PROMPT]
    with pq.ParquetFile(table) as parquet:
        yield from parquet.iter_batches(columns=columns)

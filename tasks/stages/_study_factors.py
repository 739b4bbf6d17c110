"""Calibration factors of a study against the truth: h of every form, raw and as it entered training, with estimates over seeds.

``label_noise`` does not touch h, so the first run of a seed stands for all.
"""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import numpy as np
from pydantic import Field

from dora_core.evaluation.study_statistics import FACTOR_MEASURES, Estimate, factor_columns, two_level
from dora_core.strict_model import StrictModel
from tasks.stages._calibrate_facts import Facts as CalibrateFacts
from tasks.stages._exact_densities_facts import Facts as TruthFacts
from tasks.stages._study_inputs import CellRun, Reader, strings
from tasks.tables.artifacts import GOLDEN_PROMPT

SCATTER_POINTS = 400


class FactorRow(StrictModel):
    """One h of the calibration table: its form, where its densities come from, and raw or as it entered training."""

    label: str
    form: str
    densities: str = Field(description="classifiers or exact.")
    used: str = Field(description="raw, or the treatment before training.")
    golden_shift: float
    estimates: dict[str, Estimate] = Field(description="By measure (``FACTOR_MEASURES``).")


class ScatterPoints(StrictModel):
    """h against the truth for a thinned sample of responses, each divided by its mean."""

    truth: list[float]
    h: list[float]


class FactorKey(NamedTuple):
    """Identity of an h.

    Attributes:
        densities: ``classifiers`` or ``exact``.
        used: ``raw``, or the treatment before training.
    """

    densities: str
    form: str
    used: str
    golden_shift: float

    @property
    def label(self) -> str:
        shift = f" · golden shift {self.golden_shift:g}" if self.golden_shift else ""
        return f"{self.form} · {self.densities}" + ("" if self.used == "raw" else f" · {self.used}") + shift

    @property
    def order(self) -> tuple[float, bool, bool]:
        """Sort key of the table: by shift, classifiers first, raw first."""
        return self.golden_shift, self.densities == "exact", self.used != "raw"


class Bootstrap(TypedDict):
    """Options of :func:`~dora_core.evaluation.study_statistics.two_level`."""

    resamples: int
    confidence: float
    seed: int


def calibration_rows(runs: list[CellRun], reader: Reader, bootstrap: Bootstrap) -> tuple[list[FactorRow], dict[str, ScatterPoints]]:
    """One row per h with its estimates, and a thinned sample of one seed by the row's label."""
    columns: dict[FactorKey, dict[int, dict[str, np.ndarray]]] = {}
    scatter: dict[str, ScatterPoints] = {}
    for one in runs:
        if one.calibration is None:
            continue
        fit = Fit(one, reader)
        new = {key: h for key, h in fit.factors().items() if one.seed not in columns.setdefault(key, {})}
        for key, h in new.items():
            columns[key][one.seed] = factor_columns(h, fit.truth, fit.record)
        if one.seed == runs[0].seed:
            thin = np.random.default_rng(0).permutation(len(fit.truth))[:SCATTER_POINTS]
            for key, h in new.items():
                truth, points = fit.truth[thin] / fit.truth.mean(), h[thin] / h.mean()
                scatter[key.label] = ScatterPoints(truth=_rounded(truth), h=_rounded(points))
    rows = []
    for key in sorted(columns, key=lambda k: k.order):
        seeds = columns[key].values()
        estimates = {name: two_level([by[m.columns] for by in seeds], m.statistic, **bootstrap) for name, m in FACTOR_MEASURES.items()}
        rows.append(FactorRow(label=key.label, estimates=estimates, **key._asdict()))
    return rows, scatter


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


class Fit:
    """Responses of one run's training split: the truth, and every known h.

    Attributes:
        truth: (N,) exact p_golden/P.
        record: (N,) record of each response, 0 … K−1.
    """

    def __init__(self, one: CellRun, reader: Reader):
        import pyarrow.compute as pc

        assert one.calibration is not None
        keys = ["record_id", "response_index"]
        truth = reader.table(one.truth, "truth.parquet", keys)
        truth = truth.filter(pc.equal(truth["split"], "train"))
        used = reader.table(one.calibration, "calibration.parquet", keys)
        names = [name for name in used.column_names if name.startswith(("c_", "w_", "prompt_")) or name in ("h", GOLDEN_PROMPT)]
        table = truth.join(used.select([*keys, *names]), keys, join_type="inner").sort_by([(key, "ascending") for key in keys])
        assert len(table) == len(used), "the truth stage covers every response of the same records"
        self._run, self._calibration, self._table, self._reader = one, one.calibration, table, reader
        self.source = table["source"].to_pylist()
        self.truth = table["ratio"].to_numpy()
        self.record = np.unique(strings(table["record_id"]), return_inverse=True)[1]

    def factors(self) -> dict[FactorKey, np.ndarray]:
        """Raw h of every form, and the h that was used.

        A shift of the golden reference does not change the exact densities; they are listed under shift 0.
        """
        one = self._run
        trained = self._calibration.stage == "calibrate"
        origin, shift = ("classifiers", one.cell.golden_shift) if trained else ("exact", 0.0)
        config = self._reader.context.result(self._calibration)["spec"]["calibration"]
        done = [f"τ={one.cell.temper}"] if one.cell.temper != "–" else []
        done += [f"cap {config['cap_quantile']:g}"] if config["cap_quantile"] is not None else []
        found = {FactorKey("exact", form, "raw", 0.0): h for form, h in self._exact().items()}
        if trained:
            found |= {FactorKey("classifiers", form, "raw", shift): h for form, h in self._trained().items()}
        form = config["form"] if trained else "mixture"  # the exact ratio, whatever the form of the classifiers' h
        return found | {FactorKey(origin, form, ", ".join(done) or "as used", shift): self._table["h"].to_numpy()}

    def _trained(self) -> dict[str, np.ndarray]:
        """Raw h of every form from the classifiers' probabilities, with the calibrate stage's γ and shares."""
        heads = [name[2:] for name in self._table.column_names if name.startswith("c_")]
        c = np.column_stack([self._table[f"c_{name}"].to_numpy() for name in heads])
        w = np.column_stack([self._table[f"w_{name}"].to_numpy() for name in heads])
        shares = self._reader.context.facts(self._calibration, CalibrateFacts).shares
        gamma = np.median(w * (1.0 - c) / c, axis=0)  # w = γ·c/(1 − c): one number per head, up to rounding
        prompts: np.ndarray | None = None
        if GOLDEN_PROMPT in self._table.column_names:  # of calibration.ratio: conditional
            prompts = np.column_stack([self._table[name].to_numpy() for name in (GOLDEN_PROMPT, *(f"prompt_{name}" for name in heads))])
        return self._forms(c, gamma, np.array([shares["golden"], *(shares[name] for name in heads)]), heads, prompts)

    def _exact(self) -> dict[str, np.ndarray]:
        """Raw h of every form from a perfect classifier, trained on the mixture itself (γ_i = m_i/α), and the true shares."""
        from dora_core.calibration import probabilities
        from dora_core.testbed.mixture import GOLDEN

        shares = self._reader.context.facts(self._run.truth, TruthFacts).shares
        heads = [name for name in shares if name != GOLDEN]
        m = np.array([shares[GOLDEN], *(shares[name] for name in heads)])
        log_q = {name: self._table[f"log_q_{name}"].to_numpy() for name in shares}
        gamma = m[1:] / m[0]
        logits = np.column_stack([log_q[GOLDEN] - log_q[name] for name in heads]) - np.log(gamma)
        prompts = np.column_stack([self._table[f"log_prompt_{name}"].to_numpy() for name in (GOLDEN, *heads)])
        return self._forms(probabilities(logits), gamma, m, heads, prompts)

    def _forms(
        self, c: np.ndarray, gamma: np.ndarray, shares: np.ndarray, heads: list[str], prompts: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        from dora_core.calibration import FORMS, factor

        own = np.array([1 + heads.index(name) if name in heads else 0 for name in self.source])
        return {form: factor(form, c, gamma, shares, own, prompts) for form in FORMS if form != "released" or None not in self.source}

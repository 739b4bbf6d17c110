"""Stage ``study``: the tables of a grid of realignments, from what its stages left in the store. Runs in the flow's own process.

Input: for every cell of the grid and every seed, the samples of the policy and of its start on the same held-out prompts with their
gold rewards, the evaluation, the truth and the calibration. Output: ``tables/<name>.parquet``, tidy, one row per cell (of the
calibration table: per form of h) and measure, with value, low, high, t_low, t_high, seeds, prompts; and facts for figures and page.

Measures are computed per held-out prompt first (titles in ``dora_core.evaluation.study_statistics.MEASURES``); intervals resample seeds,
then prompts. The KL comes from the evaluation as one number per seed, so its intervals resample seeds only. ``win_rate_lift`` is the paired
difference to the ``erm`` cell of the same loss and data, on the seeds and prompts that both have; ``win_rate_rise``
that to the round before.
Guarantee: the same outputs give the same bytes. Cost: about a second per cell, nearly all of it resampling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from dora_core.evaluation.study_statistics import MEASURES, TABLES, Cell, TableName
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.stage import StageContext, StageOutput, StageRef, StageSpec
from tasks.stages._study_inputs import CellRun, Reader, Series, measure, strings

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from dora_core.evaluation.study_statistics import Estimate

SCATTER_POINTS = 400
MISSING: dict[TableName, str] = {
    "calibration": "No run of this study that belongs to this table has trained classifiers.",
}


class Spec(StageSpec):
    """See the module docstring. ``batches`` made the outputs that ``cells`` names."""

    stage: ClassVar[str] = "study"
    placement: ClassVar[Literal["job", "local"]] = "local"

    cells: list[CellRun] = Field(min_length=1)
    batches: list[StageRef] = Field(default_factory=list)
    bootstrap_samples: int = Field(2000, ge=100, le=100_000)
    confidence: float = Field(0.95, gt=0.5, lt=1.0)

    @model_validator(mode="after")
    def _check(self) -> Spec:
        names = [(run.cell.key(), run.seed) for run in self.cells]
        if len(set(names)) < len(names):
            key, seed = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"seed {seed} of {key!r} is there twice: a cell has one run per seed, in all its tables")
        return self

    def bootstrap(self) -> dict[str, Any]:
        return {"resamples": self.bootstrap_samples, "confidence": self.confidence, "seed": 0}


class Cells(dict[str, dict[int, "tuple[CellRun, dict[str, Series]]"]]):
    """Runs and their measures by cell key, then seed; cells in the order of the spec."""


def run(spec: Spec, context: StageContext) -> StageOutput:
    import pyarrow.parquet as pq

    reader = Reader(context)
    cells = Cells()
    for done, one in enumerate(spec.cells, 1):
        cells.setdefault(one.cell.key(), {})[one.seed] = (one, measure(one, reader))
        context.progress(done, len(spec.cells), "runs", one.cell.key())
    estimates = {key: estimate(key, cells, spec) for key in cells}
    rows, scatter = calibration_rows([c for c in spec.cells if "calibration" in c.tables], reader, spec)

    (context.path / "tables").mkdir(exist_ok=True)
    shown: dict[str, list[str]] = {}
    for name in TABLES:
        members = [key for key, runs in cells.items() if any(name in one.tables for one, _ in runs.values())]
        tidy = calibration_table(rows) if name == "calibration" else cell_table(members, cells, estimates)
        if len(tidy):
            pq.write_table(tidy, context.path / "tables" / f"{name}.parquet", compression="zstd")
            shown[name] = [row["label"] for row in rows] if name == "calibration" else members

    facts = {
        "tables": shown,
        "missing": {name: MISSING.get(name, "No cell of this study belongs to this table.") for name in TABLES if name not in shown},
        "cells": {key: cell_facts(key, cells, estimates[key]) | {"broken_rules": broken_rules(cells[key], context)} for key in cells},
        "calibration": [row | {"estimates": {m: e.to_json() for m, e in row["estimates"].items()}} for row in rows],
        "scatter": scatter,
        "settings": settings(spec, context),
    }
    lifts = [e["win_rate_lift"] for e in estimates.values() if "win_rate_lift" in e]
    metrics = {
        "cells": len(cells),
        "runs": len(spec.cells),
        "cells_above_erm": sum(lift.low > 0 for lift in lifts),
        "cells_below_erm": sum(lift.high < 0 for lift in lifts),
    }
    return StageOutput(rows=sum(map(len, shown.values())), metrics=metrics, facts=facts)


# ----------------------------------------------------------------------------------------------------------- policies


def twin_of(key: str, cells: Cells) -> str | None:
    """The erm cell to compare with; None for itself and where the grid has none."""
    cell = _cell(cells, key)
    return next((other for other in cells if other != key and _cell(cells, other).is_twin_of(cell)), None)


def round_before(key: str, cells: Cells) -> str | None:
    """The cell whose policy this one goes on from; None in round 0 and where the grid has none."""
    cell = _cell(cells, key)
    return next((other for other in cells if cell.follows(_cell(cells, other))), None)


def _cell(cells: Cells, key: str) -> Cell:
    return next(iter(cells[key].values()))[0].cell


def estimate(key: str, cells: Cells, spec: Spec) -> dict[str, Estimate]:
    """Every measure of a cell with its intervals, in the order of MEASURES; without those that no seed has."""
    from dora_core.evaluation.study_statistics import mean_over

    runs = {seed: series for seed, (_, series) in cells[key].items()}
    paired = {"win_rate_lift": twin_of(key, cells), "win_rate_rise": round_before(key, cells)}
    by_seed = {name: [series[name].values for series in runs.values()] for name in MEASURES if name not in paired}
    for name, other in paired.items():
        if other is not None:
            shared = [seed for seed in runs if seed in cells[other]]
            by_seed[name] = [runs[seed]["win_rate"].minus(cells[other][seed][1]["win_rate"]) for seed in shared]
    filled = {name: [v for v in by_seed.get(name, []) if len(v)] for name in MEASURES}
    return {name: mean_over(values, **spec.bootstrap()) for name, values in filled.items() if values}


def cell_table(keys: list[str], cells: Cells, estimates: dict[str, dict[str, Estimate]]) -> pa.Table:
    """Tidy rows: the cell's fields, measure, and the estimate's fields."""
    return _tidy(
        [
            {"key": key} | _cell(cells, key).model_dump() | {"measure": name} | e.to_json()
            for key in keys
            for name, e in estimates[key].items()
        ]
    )


def cell_facts(key: str, cells: Cells, estimates: dict[str, Estimate]) -> dict[str, Any]:
    """``params`` and ``metrics`` are those of the cell's MLflow run; the page reads the rest."""
    cell = _cell(cells, key)
    metrics = {name: e.value for name, e in estimates.items()}
    for name in {"win_rate", "win_rate_lift", "win_rate_rise"} & estimates.keys():
        metrics |= {f"{name}_low": estimates[name].low, f"{name}_high": estimates[name].high}
    return {
        "params": cell.model_dump() | {"seeds": len(cells[key])},
        "metrics": dict(sorted(metrics.items())),
        "method": cell.method(),
        "twin": twin_of(key, cells),
        "estimates": {name: e.to_json() for name, e in estimates.items()},
    }


def broken_rules(runs: dict[int, tuple[CellRun, dict[str, Series]]], context: StageContext) -> dict[str, dict[str, str]]:
    """``{seed: {rule: what it found}}`` of the guard rails that would have stopped the round; a study goes on, to see what they spare."""
    guards = {seed: [context.result(ref)["facts"]["rules"] for ref in one.guards] for seed, (one, _) in runs.items()}
    broken = {seed: {r["name"]: r["message"] for rules in found for r in rules if r["passed"] is False} for seed, found in guards.items()}
    return {str(seed): rules for seed, rules in broken.items() if rules}


# ------------------------------------------------------------------------------------------------- calibration factors


def calibration_rows(runs: list[CellRun], reader: Reader, spec: Spec) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows (form × where its densities come from × raw or as used) with estimates, and a thinned sample of one seed for figures.

    ``label_noise`` does not touch h, so the first run of a seed stands for all.
    """
    import numpy as np

    from dora_core.evaluation.study_statistics import FACTOR_MEASURES, factor_columns, two_level

    columns: dict[tuple[Any, ...], dict[int, dict[str, np.ndarray]]] = {}
    scatter: dict[str, Any] = {}
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
                points = {"truth": fit.truth[thin] / fit.truth.mean(), "h": h[thin] / h.mean()}
                scatter[_label(*key)] = {name: [float(f"{v:.4g}") for v in values] for name, values in points.items()}
    rows = []
    for key in sorted(columns, key=lambda k: (k[3], k[0] == "exact", k[2] != "raw")):
        densities, form, used, golden_shift = key
        estimates = {
            name: two_level([by[m.columns] for by in columns[key].values()], m.statistic, **spec.bootstrap())
            for name, m in FACTOR_MEASURES.items()
        }
        described = {"label": _label(*key), "form": form, "densities": densities, "used": used, "golden_shift": golden_shift}
        rows.append(described | {"estimates": estimates})
    return rows, scatter


def _label(densities: str, form: str, used: str, golden_shift: float) -> str:
    shift = f" · golden shift {golden_shift:g}" if golden_shift else ""
    return f"{form} · {densities}" + ("" if used == "raw" else f" · {used}") + shift


class Fit:
    """One run's responses of the training split: truth, and every h that is known of them.

    Attributes:
        truth: (N,) exact p_golden/P.
        record: (N,) record of each response, 0 … K−1.
    """

    def __init__(self, one: CellRun, reader: Reader):
        import numpy as np
        import pyarrow.compute as pc

        assert one.calibration is not None
        keys = ["record_id", "response_index"]
        truth = reader.table(one.truth, "truth.parquet", keys)
        truth = truth.filter(pc.equal(truth["split"], "train"))
        used = reader.table(one.calibration, "calibration.parquet", keys)
        names = [name for name in used.column_names if name[:2] in ("c_", "w_") or name == "h"]
        table = truth.join(used.select([*keys, *names]), keys, join_type="inner").sort_by([(key, "ascending") for key in keys])
        assert len(table) == len(used), "the truth stage covers every response of the same records"
        self._run, self._table, self._reader = one, table, reader
        self.source = table["source"].to_pylist()
        self.truth = table["ratio"].to_numpy()
        self.record = np.unique(strings(table["record_id"]), return_inverse=True)[1]

    def factors(self) -> dict[tuple[Any, ...], np.ndarray]:
        """h by (densities, form, raw or what was done to it, golden shift): raw ones of every form, and the one that was used.

        The exact densities know nothing of a shifted golden reference; they are listed under shift 0.
        """
        one = self._run
        trained = one.calibration is not None and one.calibration.stage == "calibrate"
        origin, shift = ("classifiers", one.cell.golden_shift) if trained else ("exact", 0.0)
        config = self._reader.context.result(one.calibration)["spec"]["calibration"]
        done = [f"τ={one.cell.temper}"] if one.cell.temper != "–" else []
        done += [f"cap {config['cap_quantile']:g}"] if config["cap_quantile"] is not None else []
        found = {("exact", form, "raw", 0.0): h for form, h in self._exact().items()}
        if trained:
            found |= {("classifiers", form, "raw", shift): h for form, h in self._trained().items()}
        form = config["form"] if trained else "mixture"  # the exact ratio, whatever the form of the classifiers' h
        return found | {(origin, form, ", ".join(done) or "as used", shift): self._table["h"].to_numpy()}

    def _trained(self) -> dict[str, np.ndarray]:
        """Raw h of every form from the classifiers' probabilities, with the calibrate stage's γ and shares."""
        import numpy as np

        heads = [name[2:] for name in self._table.column_names if name.startswith("c_")]
        c = np.column_stack([self._table[f"c_{name}"].to_numpy() for name in heads])
        w = np.column_stack([self._table[f"w_{name}"].to_numpy() for name in heads])
        shares = self._reader.context.result(self._run.calibration)["facts"]["shares"]
        gamma = np.median(w * (1.0 - c) / c, axis=0)  # w = γ·c/(1 − c): one number per head, up to rounding
        return self._forms(c, gamma, np.array([shares["golden"], *(shares[name] for name in heads)]), heads)

    def _exact(self) -> dict[str, np.ndarray]:
        """Raw h of every form from a perfect classifier, trained on the mixture itself (γ_i = m_i/α), and the true shares."""
        import numpy as np

        from dora_core.calibration import probabilities
        from dora_core.testbed.mixture import GOLDEN

        shares = self._reader.context.result(self._run.truth)["facts"]["shares"]
        heads = [name for name in shares if name != GOLDEN]
        m = np.array([shares[GOLDEN], *(shares[name] for name in heads)])
        log_q = {name: self._table[f"log_q_{name}"].to_numpy() for name in shares}
        gamma = m[1:] / m[0]
        logits = np.column_stack([log_q[GOLDEN] - log_q[name] for name in heads]) - np.log(gamma)
        return self._forms(probabilities(logits), gamma, m, heads)

    def _forms(self, c: np.ndarray, gamma: np.ndarray, shares: np.ndarray, heads: list[str]) -> dict[str, np.ndarray]:
        import numpy as np

        from dora_core.calibration import FORMS, factor

        own = np.array([1 + heads.index(name) if name in heads else 0 for name in self.source])
        return {form: factor(form, c, gamma, shares, own) for form in FORMS if form != "released" or None not in self.source}


def calibration_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Tidy rows: which h, measure, and the estimate's fields."""
    fields = ("label", "form", "densities", "used", "golden_shift")
    return _tidy([{name: row[name] for name in fields} | {"measure": m} | e.to_json() for row in rows for m, e in row["estimates"].items()])


def _tidy(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table whose undefined bounds are null numbers, also where all of them are (t with one seed)."""
    import pyarrow as pa

    table = pa.Table.from_pylist(rows)
    return table.cast(pa.schema([pa.field(f.name, pa.float64() if pa.types.is_null(f.type) else f.type) for f in table.schema]))


def settings(spec: Spec, context: StageContext) -> dict[str, Any]:
    """What was fixed before looking, for the end of the page: from the specs of the first run, and of one run per loss."""
    first = spec.cells[0]
    of_loss = {one.cell.loss: context.result(one.align)["spec"]["align"] for one in reversed(spec.cells) if one.align.stage == "align"}
    drop = {"seed", "label_noise", "golden_shift"}
    testbed = context.result(first.truth)["spec"]["testbed"]
    return {
        "seeds": sorted({one.seed for one in spec.cells}),
        "confidence": spec.confidence,
        "bootstrap_samples": spec.bootstrap_samples,
        "testbed": {name: value for name, value in testbed.items() if name not in drop},
        "generate": context.result(first.samples)["spec"]["generate"],
        "losses": {loss: of_loss[loss]["loss"] for loss in sorted(of_loss)},
        "optimization": {loss: of_loss[loss]["optimization"] for loss in sorted(of_loss)},
    }


def headline(result: StageResult[Any]) -> str:
    return f"{result.metrics['cells']:.0f} cells, {result.metrics['runs']:.0f} runs"


STAGE = Stage(Spec, run, headline=headline)

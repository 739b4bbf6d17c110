"""Stage ``study``: the tables of a grid of realignments, from the outputs of its stages. Runs in the flow's own process.

Input: for every cell of the grid and every seed, the samples of the policy and of its start on the same held-out prompts with their
gold rewards, the evaluation, the truth and the calibration. Output: ``tables/<name>.parquet``, tidy, one row per cell (of the
calibration table: per form of h) and measure, with value, low, high, t_low, t_high, seeds, prompts; and facts for figures and the page.

Measures are computed per held-out prompt first (titles in ``dora_core.evaluation.study_statistics.MEASURES``); intervals resample seeds,
then prompts. The KL comes from the evaluation as one number per seed, so its intervals resample seeds only. ``win_rate_lift`` is the paired
difference to the ``erm`` cell of the same loss and data, on the seeds and prompts that both have; ``win_rate_over_golden``
that to the cell of the golden records alone (as many steps), ``win_rate_rise`` that to the round before.
Guarantee: the same outputs give the same bytes. Cost: about a second per cell, nearly all of it resampling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from dora_core.evaluation.study_statistics import MEASURES, TABLES, Cell, Estimate, TableName
from dora_core.strict_model import StrictModel
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.facts import Facts as BaseFacts
from tasks.runtime.spec import StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.stages._guard_facts import Facts as GuardFacts
from tasks.stages._study_factors import Bootstrap, FactorRow, ScatterPoints, calibration_rows
from tasks.stages._study_inputs import CellRun, Reader
from tasks.stages._study_measures import Series, measure

if TYPE_CHECKING:
    import pyarrow as pa

MISSING: dict[TableName, str] = {
    "calibration": "No run of this study that belongs to this table has trained classifiers.",
}


class Spec(StageSpec):
    """See the module docstring. ``batches``: the stages that computed the outputs in ``cells``."""

    stage: ClassVar[str] = "study"
    version: ClassVar[int] = 2  # baselines of golden and synthetic records
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
            raise ValueError(f"seed {seed} of {key!r} is given twice: a cell has one run per seed, in all its tables")
        return self

    def bootstrap(self) -> Bootstrap:
        return {"resamples": self.bootstrap_samples, "confidence": self.confidence, "seed": 0}


class CellParams(Cell):
    """Parameters of a cell's MLflow run."""

    seeds: int


class CellFacts(StrictModel):
    """One cell of the grid, with the ``params`` and ``metrics`` of its MLflow run."""

    params: CellParams
    metrics: dict[str, float]
    method: str = Field(description="Loss and objective, e.g. ``dpo · dora λ=auto``.")
    twin: str | None = Field(description="Key of the erm cell it is compared with; null for erm itself and where the grid has none.")
    golden: str | None = Field(None, description="Key of the cell of golden records alone; null for baselines and where there is none.")
    estimates: dict[str, Estimate] = Field(description="By measure (``MEASURES``); measures that no seed has are missing.")
    broken_rules: dict[str, dict[str, str]] = Field(description="``{seed: {rule: message}}`` of the guard rails that would stop the round.")


class Settings(StrictModel):
    """Settings of the study, for the end of its page."""

    seeds: list[int]
    confidence: float
    bootstrap_samples: int
    testbed: dict[str, Any] = Field(description="Without the settings that vary over cells and seeds.")
    generate: dict[str, Any]
    losses: dict[str, dict[str, Any]] = Field(description="Settings by loss.")
    optimization: dict[str, dict[str, Any]] = Field(description="Settings by loss.")


class Facts(BaseFacts):
    """Tables of the study, for figures and page."""

    tables: dict[str, list[str]] = Field(description="Keys of each table's cells; of the calibration table, labels of its rows.")
    missing: dict[str, str] = Field(description="Why a table is not there, one sentence each.")
    cells: dict[str, CellFacts]
    calibration: list[FactorRow]
    scatter: dict[str, ScatterPoints] = Field(description="By the label of a row of the calibration table.")
    settings: Settings

    def cells_of(self, table: str) -> list[CellFacts]:
        """Cells of a table; empty without it."""
        return [self.cells[key] for key in self.tables.get(table, [])]

    def twin_of(self, cell: CellFacts) -> CellFacts | None:
        """The erm cell that ``cell`` is compared with."""
        return None if cell.twin is None else self.cells[cell.twin]

    def golden_of(self, cell: CellFacts) -> CellFacts | None:
        """The cell of golden records alone that ``cell`` is compared with."""
        return None if cell.golden is None else self.cells[cell.golden]


class Measured(NamedTuple):
    """A run and its measures."""

    run: CellRun
    series: dict[str, Series]


class Cells(dict[str, dict[int, Measured]]):
    """Runs and their measures by cell key, then seed; cells in the order of the spec."""


def run(spec: Spec, context: StageContext) -> StageOutput:
    import pyarrow.parquet as pq

    reader = Reader(context)
    cells = Cells()
    for done, one in enumerate(spec.cells, 1):
        cells.setdefault(one.cell.key(), {})[one.seed] = Measured(one, measure(one, reader))
        context.progress(done, len(spec.cells), "runs", one.cell.key())
    estimates = {key: estimate(key, cells, spec) for key in cells}
    rows, scatter = calibration_rows([c for c in spec.cells if "calibration" in c.tables], reader, spec.bootstrap())

    (context.path / "tables").mkdir(exist_ok=True)
    shown: dict[str, list[str]] = {}
    for name in TABLES:
        members = [key for key, runs in cells.items() if any(name in one.run.tables for one in runs.values())]
        tidy = calibration_table(rows) if name == "calibration" else cell_table(members, cells, estimates)
        if len(tidy):
            pq.write_table(tidy, context.path / "tables" / f"{name}.parquet", compression="zstd")
            shown[name] = [row.label for row in rows] if name == "calibration" else members

    facts = Facts(
        tables=shown,
        missing={name: MISSING.get(name, "No cell of this study belongs to this table.") for name in TABLES if name not in shown},
        cells={key: cell_facts(key, cells, estimates[key], context) for key in cells},
        calibration=rows,
        scatter=scatter,
        settings=settings(spec, context),
    )
    lifts = [e["win_rate_lift"] for key, e in estimates.items() if "win_rate_lift" in e and not _cell(cells, key).is_baseline]
    metrics: dict[str, float] = {
        "cells": len(cells),
        "runs": len(spec.cells),
        "cells_above_erm": sum(lift.low > 0 for lift in lifts),
        "cells_below_erm": sum(lift.high < 0 for lift in lifts),
    }
    if over := [e["win_rate_over_golden"] for e in estimates.values() if "win_rate_over_golden" in e]:
        metrics |= {
            "cells_above_golden": sum(lift.low > 0 for lift in over),
            "cells_below_golden": sum(lift.high < 0 for lift in over),
        }
    return StageOutput(rows=sum(map(len, shown.values())), metrics=metrics, facts=facts)


# ----------------------------------------------------------------------------------------------------------- policies


def twin_of(key: str, cells: Cells) -> str | None:
    """The erm cell to compare with; None for itself and where the grid has none."""
    cell = _cell(cells, key)
    return next((other for other in cells if other != key and _cell(cells, other).is_twin_of(cell)), None)


def golden_of(key: str, cells: Cells) -> str | None:
    """The cell of golden records alone to compare with; None for baselines and where the grid has none."""
    cell = _cell(cells, key)
    return None if cell.is_baseline else next((other for other in cells if _cell(cells, other).is_golden_of(cell)), None)


def round_before(key: str, cells: Cells) -> str | None:
    """The cell whose policy this one continues; None in round 0 and where the grid has none."""
    cell = _cell(cells, key)
    return next((other for other in cells if cell.follows(_cell(cells, other))), None)


def _cell(cells: Cells, key: str) -> Cell:
    return next(iter(cells[key].values())).run.cell


def estimate(key: str, cells: Cells, spec: Spec) -> dict[str, Estimate]:
    """Every measure of a cell with its intervals, in the order of MEASURES; measures that no seed has are missing."""
    from dora_core.evaluation.study_statistics import mean_over

    runs = {seed: one.series for seed, one in cells[key].items()}
    paired = {
        "win_rate_lift": twin_of(key, cells),
        "win_rate_over_golden": golden_of(key, cells),
        "win_rate_rise": round_before(key, cells),
    }
    by_seed = {name: [series[name].values for series in runs.values()] for name in MEASURES if name not in paired}
    for name, other in paired.items():
        if other is not None:
            shared = [seed for seed in runs if seed in cells[other]]
            by_seed[name] = [runs[seed]["win_rate"].minus(cells[other][seed].series["win_rate"]) for seed in shared]
    filled = {name: [v for v in by_seed.get(name, []) if len(v)] for name in MEASURES}
    return {name: mean_over(values, **spec.bootstrap()) for name, values in filled.items() if values}


def cell_table(keys: list[str], cells: Cells, estimates: dict[str, dict[str, Estimate]]) -> pa.Table:
    """Tidy rows: the cell's fields, measure, and the estimate's fields."""
    return _tidy(
        [
            {"key": key} | _cell(cells, key).model_dump() | {"measure": name} | e.model_dump(mode="json")
            for key in keys
            for name, e in estimates[key].items()
        ]
    )


def cell_facts(key: str, cells: Cells, estimates: dict[str, Estimate], context: StageContext) -> CellFacts:
    cell = _cell(cells, key)
    metrics = {name: e.value for name, e in estimates.items()}
    for name in {"win_rate", "win_rate_lift", "win_rate_over_golden", "win_rate_rise"} & estimates.keys():
        metrics |= {f"{name}_low": estimates[name].low, f"{name}_high": estimates[name].high}
    return CellFacts(
        params=CellParams(**cell.model_dump(), seeds=len(cells[key])),
        metrics=dict(sorted(metrics.items())),
        method=cell.method(),
        twin=twin_of(key, cells),
        golden=golden_of(key, cells),
        estimates=estimates,
        broken_rules=broken_rules(cells[key], context),
    )


def broken_rules(runs: dict[int, Measured], context: StageContext) -> dict[str, dict[str, str]]:
    """``{seed: {rule: message}}`` of the guard rails that would stop the round; a study measures the round all the same."""
    guards = {seed: [context.facts(ref, GuardFacts).rules for ref in one.run.guards] for seed, one in runs.items()}
    broken = {seed: {r.name: r.message for rules in found for r in rules if r.passed is False} for seed, found in guards.items()}
    return {str(seed): rules for seed, rules in broken.items() if rules}


def calibration_table(rows: list[FactorRow]) -> pa.Table:
    """Tidy rows: the h, the measure, and the estimate's fields."""
    named = [(row.model_dump(exclude={"estimates"}), row.estimates) for row in rows]
    return _tidy([fields | {"measure": m} | e.model_dump(mode="json") for fields, estimates in named for m, e in estimates.items()])


def _tidy(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table; an undefined bound is a null number, even in a column of nulls (t with one seed)."""
    import pyarrow as pa

    table = pa.Table.from_pylist(rows)
    return table.cast(pa.schema([pa.field(f.name, pa.float64() if pa.types.is_null(f.type) else f.type) for f in table.schema]))


def settings(spec: Spec, context: StageContext) -> Settings:
    """Settings that were fixed beforehand, from the specs of the first run and of one run per loss."""
    first = spec.cells[0]
    of_loss = {one.cell.loss: context.result(one.align)["spec"]["align"] for one in reversed(spec.cells) if one.align.stage == "align"}
    drop = {"seed", "label_noise", "golden_shift"}
    testbed = context.result(first.truth)["spec"]["testbed"]
    return Settings(
        seeds=sorted({one.seed for one in spec.cells}),
        confidence=spec.confidence,
        bootstrap_samples=spec.bootstrap_samples,
        testbed={name: value for name, value in testbed.items() if name not in drop},
        generate=context.result(first.samples)["spec"]["generate"],
        losses={loss: of_loss[loss]["loss"] for loss in sorted(of_loss)},
        optimization={loss: of_loss[loss]["optimization"] for loss in sorted(of_loss)},
    )


def headline(result: StageResult[Facts]) -> str:
    return f"{result.metrics['cells']:.0f} cells, {result.metrics['runs']:.0f} runs"


STAGE = Stage(Spec, run, facts=Facts, headline=headline)

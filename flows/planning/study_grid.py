"""The grid of a study: from its configuration to the specs of every stage, shared by digest, and to the plan of the flow.

A *cell* is one trained policy; the tables share cells (the ``erm`` row of the pairwise table is also the first of the ablation).
Every cell is, for every seed, the chain of a realignment, built by the same code (:class:`flows.planning.specs.Chain`), with ``truth``
beside it and samples at its end:

    ingest → truth (exact densities)
       ├───→ classify → calibrate ┐
       └───→ sft → reference ─────┴→ align → evaluate
              └→ generate → judge     └→ rounds (``flows/planning/rounds.py``) → generate → judge

Specs point at their inputs by digest, so that equal parts of two chains are one stage. A cell with other label noise or another golden
reference recomputes only the stages that read it: labels enter ``align`` and ``evaluate``, the golden reference enters the classifiers, and
the rest (start, reference log-probabilities, truth) is that of the seed's own mixture. So these tables compare factors, not starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from dora_core.config.data import DataConfig, DataSource
from dora_core.config.judging import GoldJudge
from dora_core.config.method import CalibrationConfig, TestbedConfig
from dora_core.config.rounds import Strategy
from dora_core.config.twins import TWINS, TwinName
from dora_core.config.valuation import ExchangeConfig, RaceConfig
from dora_core.evaluation.study_statistics import Cell, TableName
from dora_core.objectives import OBJECTIVES, find_objective
from dora_core.objectives.settings import ObjectiveConfig
from dora_core.strict_model import StrictModel
from flows.config.models import ROBUST, Contender, ExecutionConfig, SelfTrainConfig, StudyConfig
from flows.config.run_names import strength_of
from flows.planning.latest import LatestStage, read_latest
from flows.planning.planned_stage import Plan, PlannedStage
from flows.planning.rounds import Samples, learn, sample
from flows.planning.specs import START_STREAM, Chain, pinned
from infra.store.store import Store, sha256_of
from tasks.runtime.spec import StageRef, StageSpec
from tasks.stages import batch
from tasks.stages import study as tables_stage
from tasks.stages._study_inputs import CellRun

EXACT = ("reweight", "dora", "dora_tilted")
"""Objectives of the ablation that are also trained with factors from exact densities."""
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


# --------------------------------------------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Variant:
    """All settings of a cell; :attr:`cell` has those that the tables show."""

    contender: Contender
    objective: ObjectiveConfig
    calibration: CalibrationConfig
    exact: bool = False
    label_noise: float = 0.0
    golden_shift: float = 0.0
    round: int = 0
    strategy: Strategy = "align"
    baseline: TwinName | None = None

    @property
    def uses_factors(self) -> bool:
        return find_objective(self.objective.name).uses_factors

    @property
    def cell(self) -> Cell:
        temper = self.calibration.temper
        shown = {
            "factors": "exact" if self.exact else self.calibration.form,
            "temper": temper if isinstance(temper, str) else f"{temper:g}",
        }
        return Cell(
            loss=self.contender.label,
            objective=self.objective.name,
            lam=strength_of(self.objective) or "–",
            label_noise=self.label_noise,
            golden_shift=self.golden_shift,
            round=self.round,
            strategy=self.strategy,
            baseline=self.baseline or "–",
            **(shown if self.uses_factors else {}),
        )


def cells(config: StudyConfig) -> dict[str, tuple[Variant, list[TableName]]]:
    """``{cell key: (settings, tables that show it)}``, each cell once, in an order that suits every table."""
    found: dict[str, tuple[Variant, list[TableName]]] = {}
    for table in config.tables:
        for variant in _rows(config, table):
            _, tables = found.setdefault(variant.cell.key(), (variant, []))
            tables += [table] if table not in tables else []
    return dict(sorted(found.items(), key=lambda item: _order(config, item[1][0])))


def _order(config: StudyConfig, variant: Variant) -> tuple[float, ...]:
    """Rows by loss as configured, then data, factors, objective as registered, λ with auto last, temper."""
    lam, temper = (
        value if isinstance(value, float) else math.inf if value == "auto" else value.start
        for value in (variant.objective.lam, variant.calibration.temper)
    )
    loss = list(config.contenders).index(variant.contender.label)
    objective = list(OBJECTIVES).index(variant.objective.name)
    learned = STRATEGIES.index(variant.strategy)
    part = -1 if variant.baseline is None else list(TWINS).index(variant.baseline)
    return loss, variant.label_noise, variant.golden_shift, variant.exact, objective, part, lam, temper, learned, variant.round


def _rows(config: StudyConfig, table: TableName) -> Iterator[Variant]:
    """Yield the cells of one table."""
    first = config.contenders[config.focus[0]]
    base = config.testbed

    def variant(contender: Contender, objective: str | ObjectiveConfig, **settings: Any) -> Variant:
        chosen = objective_of(config, objective) if isinstance(objective, str) else objective
        defaults: dict[str, Any] = {"calibration": config.calibration, "label_noise": base.label_noise, "golden_shift": base.golden_shift}
        return Variant(contender, chosen, **(defaults | settings))

    if table in ("pairwise", "listwise"):
        for contender in config.pairwise if table == "pairwise" else config.listwise:
            yield from (variant(contender, name) for name in contender.objectives)
            if contender.label in config.focus:
                yield from (variant(contender, "erm", baseline=name) for name in config.parts)
    elif table == "ablation":
        for contender in map(config.contenders.__getitem__, config.focus):
            yield from (variant(contender, name) for name in config.ablation)
            yield from (variant(contender, "erm", baseline=name) for name in config.parts)
            yield from (variant(contender, name, exact=True) for name in EXACT if name in config.ablation)
    elif table == "lambda":
        for contender in map(config.contenders.__getitem__, config.focus):
            yield variant(contender, "erm")
            for lam in config.lambdas:
                yield variant(contender, config.robust.evolve(name="dora", lam=lam))
    elif table == "noise":
        plain = ObjectiveConfig(name="dora")
        untempered = config.calibration.evolve(temper=1.0)
        for noise in config.noise_levels:
            yield from (variant(first, name, label_noise=noise) for name in ("erm", "dro"))
            yield variant(first, plain.evolve(lam=1.0), calibration=untempered, label_noise=noise)
            yield from (variant(first, name, label_noise=noise) for name in (ROBUST, "dora_tilted"))
    elif table == "shifted_golden":
        for shift in config.golden_shifts:
            yield from (variant(first, name, golden_shift=shift) for name in ("erm", "reweight", ROBUST))
    elif table == "rounds":
        yield from (variant(first, name, round=number) for name in ("erm", ROBUST) for number in range(config.rounds.rounds + 1))
        for strategy in config.strategies:
            yield from (variant(first, ROBUST, round=number, strategy=strategy) for number in range(1, config.rounds.rounds + 1))
    elif table == "calibration":
        shifts = config.golden_shifts if "shifted_golden" in config.tables else [base.golden_shift]
        yield from (variant(first, ROBUST, golden_shift=shift) for shift in shifts)
    elif table == "confidence":
        for contender in (*config.pairwise, *config.listwise):
            yield from (variant(contender, name) for name in contender.objectives)


def objective_of(config: StudyConfig, name: str) -> ObjectiveConfig:
    """Return a named objective with the λ, target and scope of ``robust``.

    ``erm`` and ``reweight``, which have none, keep the defaults, so that their digest does not depend on settings that they ignore;
    ``dr_dpo`` has its own paper's λ.
    """
    if name == ROBUST:
        return config.robust
    if name == "dr_dpo":
        return ObjectiveConfig(name=name, lam=1.0)  # β′ of its paper
    return config.robust.evolve(name=name) if find_objective(name).uses_lambda else ObjectiveConfig(name=name)


# -------------------------------------------------------------------------------------------------------------- stages


@dataclass(frozen=True)
class Grid:
    """All stages of a study.

    Attributes:
        cells: number of cells per seed.
        stages: per seed, every stage once, in topological order.
        runs: references to the outputs of each seed of each cell, for the tables.
        inputs: ``{URI: digest}`` of the generated data.
    """

    cells: int
    stages: dict[int, list[StageSpec]]
    runs: list[CellRun]
    inputs: dict[str, str]


class _Data(StrictModel):
    """One generated mixture, as files."""

    config: DataConfig
    fingerprints: dict[str, str]


def build_grid(config: StudyConfig, folder: Path) -> Grid:
    """Return the grid of a study. Its data is generated below ``folder`` unless it is there: digests cover the content of files.

    Raises:
        ModelError: a model is unknown. ConfigError: the testbed cannot give as many prompts.
    """
    config = pinned(config)
    wanted = cells(config)
    stages: dict[int, list[StageSpec]] = {}
    runs: list[CellRun] = []
    inputs: dict[str, str] = {}
    for seed in config.seeds:
        unique: dict[str, StageSpec] = {}
        mixtures: dict[TestbedConfig, _Data] = {}
        for variant, tables in wanted.values():
            own = config.testbed.evolve(seed=config.testbed.seed + seed)
            varied = own.evolve(label_noise=variant.label_noise, golden_shift=variant.golden_shift)
            for testbed in (own, varied):
                if testbed not in mixtures:
                    mixtures[testbed] = _materialized(testbed, config, folder)
                    inputs |= mixtures[testbed].fingerprints
            specs, run = _realignment(config, variant, tables, seed, own, mixtures[own], mixtures[varied])
            for spec in specs:
                unique.setdefault(spec.digest(), spec)
            runs.append(run)
        stages[seed] = list(unique.values())
    return Grid(len(wanted), stages, runs, inputs)


def _materialized(testbed: TestbedConfig, config: StudyConfig, folder: Path) -> _Data:
    from dora_core.data.inputs import fingerprint_sources
    from dora_core.testbed.mixture import materialize

    name = sha256_of({"testbed": testbed.model_dump(mode="json"), "golden": config.golden_responses})[:16]
    train, golden = materialize(testbed, config.golden_responses, folder / name)
    data = DataConfig(train=[DataSource(path=str(train))], golden=[DataSource(path=str(golden))], holdout_fraction=config.holdout_fraction)
    return _Data(config=data, fingerprints=fingerprint_sources(data))


def _realignment(
    config: StudyConfig, variant: Variant, tables: list[TableName], seed: int, testbed: TestbedConfig, own: _Data, varied: _Data
) -> tuple[list[StageSpec], CellRun]:
    """Return one seed of a cell: all its stages, and the places of its outputs.

    Args:
        own: the seed's mixture.
        varied: the same texts with the variant's label noise and golden reference.
    """
    from tasks.stages import exact_densities as truth
    from tasks.stages import generate, judge

    if isinstance(config.judge, GoldJudge):
        config = config.evolve(judge=GoldJudge(testbed=testbed))
    base = Chain(_settings(config, variant, seed, own.config), own.fingerprints)
    chain = Chain(_settings(config, variant, seed, varied.config), varied.fingerprints)
    run = chain.config.execution.of
    exact = base.add("truth", truth.Spec(records=base.records, testbed=testbed, calibration=config.calibration, execution=run("truth")))
    start = base.start()
    reference = base.reference(start)
    calibration = None
    if variant.uses_factors:
        same_golden = variant.golden_shift == testbed.golden_shift
        calibration = exact if variant.exact else (base if same_golden else chain).calibrate()
    race, twin = chain.choose(calibration), variant.baseline
    policy = chain.align(start, reference, calibration, race=race) if twin is None else chain.twin(twin, start, reference)
    done, before = Samples(), policy
    for chain.round in range(1, variant.round + 1):
        before = policy
        sample(chain, start, policy, done)
        policy = learn(chain, policy, done)
    chain.records = chain.given
    evaluation = chain.evaluate(start, reference, policy)
    if variant.round:
        chain.guard("guard policy", evaluation=evaluation, before=chain.evaluate(start, reference, before, label="evaluate before"))

    def sampled(name: str, model: StageRef | None, stream: int) -> tuple[StageRef, StageRef]:
        """Add samples of a policy on held-out prompts, and their gold rewards."""
        drawn = generate.Spec(
            records=base.records,
            policy=model,
            model=base.model,
            text=base.config.text,
            generate=config.generate.evolve(seed=config.generate.seed + seed + stream),
            execution=run("generate"),
        )
        samples = chain.add(f"generate {name}", drawn)
        judged = judge.Spec(records=base.records, samples=samples, judge=GoldJudge(testbed=testbed), execution=run("judge"))
        return samples, chain.add(f"judge {name}", judged)

    samples, scores = sampled("policy", policy, 0)
    _, start_scores = sampled("start", start, START_STREAM)
    outputs = CellRun(
        cell=variant.cell,
        seed=seed,
        tables=tables,
        records=chain.records,
        align=policy,
        samples=samples,
        scores=scores,
        start_scores=start_scores,
        evaluation=evaluation,
        truth=exact,
        calibration=calibration,
        guards=[spec.ref() for label, spec in chain.specs.items() if spec.stage == "guard" and chain.rounds[label] == variant.round],
    )
    return [spec for spec in (*base.specs.values(), *chain.specs.values()) if not spec.on_demand], outputs


def _settings(config: StudyConfig, variant: Variant, seed: int, data: DataConfig) -> SelfTrainConfig:
    """Return the configuration of one cell and seed: every stage in one process, every seed moved."""

    def moved(section: Any, **changes: Any) -> Any:
        return section.evolve(**{"seed": section.seed + seed} | changes)

    rate = variant.contender.learning_rate or config.align.optimization.learning_rate
    align = {
        "loss": variant.contender.loss,
        "objective": variant.objective,
        "optimization": moved(config.align.optimization, learning_rate=rate),
    }
    rounds = config.rounds.evolve(strategy=variant.strategy)
    execution = {name: getattr(config.execution, name) for name in ExecutionConfig.model_fields}
    return SelfTrainConfig(
        project=config.project,
        data=data,
        text=config.text,
        policy=config.policy,
        classifier=moved(config.classifier),
        calibration=variant.calibration,
        sft=config.sft.evolve(optimization=moved(config.sft.optimization)),
        align=config.align.evolve(**align),
        race=moved(RaceConfig()),
        exchange=moved(ExchangeConfig()),
        evaluate=moved(config.evaluate),
        compare=None,
        rounds=rounds,
        generate=moved(config.rounds_generate),
        judge=config.judge,
        execution=ExecutionConfig(**{n: e.evolve(workers=0) for n, e in execution.items() if e is not None}),
    )


# ---------------------------------------------------------------------------------------------------------------- plan


def plan_study(config: StudyConfig, grid: Grid, store: Store) -> Plan:
    """Return the plan: one ``batch`` per seed, then the tables; see :func:`flows.planning.plan.build_plan`."""
    latest = read_latest(store, config.project)
    known = _mean_seconds(grid, latest, store)
    stages: list[PlannedStage] = []
    for seed, specs in grid.stages.items():
        label = f"seed {seed}"
        spec = batch.Spec(stages=[s.ref() for s in specs], execution=config.execution.of("batch"))
        todo = [s for s in specs if not s.is_done(store)]
        cached = not todo and spec.is_done(store)
        workers = min(max(1, spec.execution.workers), max(1, len(todo)))
        estimate = sum(known[s.stage] for s in todo) / workers if all(s.stage in known for s in todo) else None
        if cached:
            reason = f"cached: all {len(specs)} stages"
        else:
            reason = f"runs: {len(todo)} of {len(specs)} stages, {len(specs) - len(todo)} cached"
        stages.append(PlannedStage(label, spec, cached, reason, estimate, nothing_heavy=not todo))
    tables = tables_stage.Spec(
        cells=grid.runs,
        batches=[s.spec.ref() for s in stages],
        bootstrap_samples=config.bootstrap_samples,
        confidence=config.confidence,
    )
    before = latest.get("tables")
    result = store.read_result(tables.stage, before.digest if before else tables.digest())
    if cached := tables.is_done(store):
        reason = "cached: same grid, same results"
    else:
        reason = "runs: first time" if before is None else "runs: the grid or its settings changed"
    stages.append(PlannedStage("tables", tables, cached, reason, result["seconds"] if result else None))
    return Plan(config.project, tuple(stages), grid.inputs)


def _mean_seconds(grid: Grid, latest: dict[str, LatestStage], store: Store) -> dict[str, float]:
    """Return mean seconds per kind of stage, over finished stages of this grid and of the project's last one."""
    last = [StageRef(**ref) for before in latest.values() for ref in before.payload.get("stages", [])]
    refs = {ref.digest: ref for ref in (*(s.ref() for specs in grid.stages.values() for s in specs), *last)}
    seconds: dict[str, list[float]] = {}
    for ref in refs.values():
        if (result := store.read_result(ref.stage, ref.digest)) is not None:
            seconds.setdefault(ref.stage, []).append(result["seconds"])
    return {stage: sum(values) / len(values) for stage, values in seconds.items()}

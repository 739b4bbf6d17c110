"""The grid of a study: which cell is in which table, what cells share, and what the plan says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dora_core.errors import ConfigError
from flows.cli import app
from flows.config.loading import load_config, load_preset
from flows.config.models import RealignConfig, StudyConfig
from flows.planning.latest import write_latest
from flows.planning.plan import build_plan
from flows.planning.study_grid import Grid, build_grid, cells, plan_study
from infra.store.store import Store
from tasks.runtime.stage import StageSpec, write_spec

SMALL = "testbed: {prompts: 40, responses_per_prompt: 3}\ngolden_responses: 20\nseeds: [0, 1]\n"
BASE = "noise 0 · golden shift 0"


def config(folder: Path, text: str = "", *overrides: str) -> StudyConfig:
    (folder / "s.yaml").write_text(SMALL + text)
    return load_config(folder / "s.yaml", overrides, StudyConfig)


def members(study: StudyConfig, table: str) -> list[str]:
    return [key for key, (_, tables) in cells(study).items() if table in tables]


def kinds(specs: list[StageSpec]) -> dict[str, int]:
    return {stage: sum(s.stage == stage for s in specs) for stage in sorted({s.stage for s in specs})}


@pytest.fixture
def pair(tmp_path: Path) -> StudyConfig:
    """dpo, plain and robust."""
    return config(tmp_path, "tables: [pairwise]\npairwise: [{loss: dpo}]\nlistwise: []\nfocus: [dpo]\nrobust: {lambda: 2}\n")


@pytest.fixture
def grid(pair: StudyConfig, tmp_path: Path) -> Grid:
    return build_grid(pair, tmp_path / "data")


# --------------------------------------------------------------------------------------------------------------- cells


def test_the_paper_tables_by_default(tmp_path: Path) -> None:
    study = config(tmp_path, "robust: {lambda: 1}\ncalibration: {temper: auto}\n")
    pairwise, listwise = members(study, "pairwise"), members(study, "listwise")
    assert {key.split(" · ")[0] for key in pairwise} == {"dpo", "r_dpo", "exo", "simpo", "robust_dpo"}
    assert {key.split(" · ")[0] for key in listwise} == {"dpo_pl", "rrhf", "lire"}
    assert len(pairwise) == 4 * 2 + 2 and len(listwise) == 3 * 2
    assert {f"exo · erm · {BASE}", f"exo · dora λ=1 · mixture τ=auto · {BASE}", f"robust_dpo · erm · {BASE}"} <= set(pairwise)
    assert f"dpo · dr_dpo λ=1 · {BASE}" in pairwise
    assert [row.split(" · ")[1] for row in members(study, "rounds")] == ["erm"] * 4 + ["dora λ=1"] * 4
    assert [row.rsplit(" · ", 1)[1] for row in members(study, "rounds")][1:4] == ["round 1", "round 2", "round 3"]
    assert set(members(study, "confidence")) == {*pairwise, *listwise}


def test_the_ablation_has_exact_factors_where_they_are_used(tmp_path: Path) -> None:
    rows = members(config(tmp_path, "focus: [dpo]\n"), "ablation")
    assert [row.split(" · ")[1].split()[0] for row in rows] == [
        *("erm", "reweight", "dro", "dora", "dora_outer", "dora_tilted"),
        *("reweight", "dora", "dora_tilted"),
    ]
    assert ["exact" in row for row in rows] == [False] * 6 + [True] * 3


def test_lambda_noise_and_shift_vary_one_thing(tmp_path: Path) -> None:
    study = config(
        tmp_path, "focus: [dpo]\nlambdas: [0.5, auto]\nnoise_levels: [0.0, 0.4]\ngolden_shifts: [0.0, 1.0]\nrobust: {lambda: 3}\n"
    )
    assert [row.split(" · ")[1] for row in members(study, "lambda")] == ["erm", "dora λ=0.5", "dora λ=auto"]
    assert [row.split(" · ")[1] for row in members(study, "noise") if "noise 0.4" in row] == [
        *("erm", "dro λ=3", "dora λ=1", "dora λ=3", "dora_tilted λ=3")
    ]
    assert [row.rsplit(" · ", 1)[1] for row in members(study, "shifted_golden")] == ["golden shift 0"] * 3 + ["golden shift 1"] * 3


def test_the_losses_of_focus_are_also_trained_on_one_kind_of_records(tmp_path: Path) -> None:
    """Only where records are of one kind; the ablation shares these cells, and no robust objective, factor or λ plays a part in them."""
    study = config(tmp_path, "focus: [dpo, lire]\n", "testbed.one_source_per_record=true")
    parts = ["golden_only", "golden_only_epochs", "synthetic_only"]
    for table, loss in (("pairwise", "dpo"), ("listwise", "lire")):
        rows = [row.split(" · ")[:2] for row in members(study, table) if row.split(" · ")[1] in parts]
        assert rows == [[loss, name] for name in parts]
    assert [row.split(" · ")[1] for row in members(study, "ablation") if row.startswith("dpo · ")][:4] == ["erm", *parts]
    assert (
        len(cells(config(tmp_path, "focus: [dpo, lire]\nbaselines: []\n", "testbed.one_source_per_record=true"))) == len(cells(study)) - 6
    )


def test_a_baseline_is_a_twin_of_the_same_start(pair: StudyConfig, tmp_path: Path) -> None:
    study = pair.evolve(testbed=pair.testbed.evolve(one_source_per_record=True))
    grid = build_grid(study, tmp_path / "data")
    specs = {spec.digest(): spec for spec in grid.stages[0]}
    runs = {run.cell.method(): specs[run.align.digest] for run in grid.runs if run.seed == 0}
    golden, plain = runs["dpo · golden_only"], runs["dpo · erm"]
    assert golden.selection.records == "golden" and golden.equal_steps and not runs["dpo · golden_only_epochs"].equal_steps
    assert (golden.start, golden.reference, golden.align) == (plain.start, plain.reference, plain.align)


def test_auto_is_the_race_of_each_seed(tmp_path: Path) -> None:
    """Beside the rows that it chooses among, with their factors."""
    text = "tables: [pairwise]\npairwise: [{loss: dpo, objectives: [erm, dora, auto]}]\nlistwise: []\nfocus: [dpo]\n"
    study = config(tmp_path, text)
    grid = build_grid(study, tmp_path / "data")
    specs = {spec.digest(): spec for spec in grid.stages[0]}
    runs = {run.cell.method(): specs[run.align.digest] for run in grid.runs if run.seed == 0}
    auto, dora = runs["dpo · auto · mixture τ=auto"], runs["dpo · dora λ=auto · mixture τ=auto"]
    race = specs[auto.race.digest]
    assert race.calibration == dora.calibration and auto.calibration == auto.trust == auto.race and race.records == auto.records
    assert kinds(grid.stages[0])["race"] == kinds(grid.stages[0])["value"] == 1
    other = next(spec for spec in grid.stages[1] if spec.stage == "race")
    assert (race.race.seed, race.exchange.seed) == (0, 0) and (other.race.seed, other.exchange.seed) == (1, 1)


def test_a_cell_of_two_tables_is_one_cell(tmp_path: Path) -> None:
    found = cells(config(tmp_path))
    assert found[f"dpo · erm · {BASE}"][1] == ["pairwise", "ablation", "lambda", "noise", "rounds", "confidence", "shifted_golden"]
    assert [v.cell.key() for v, _ in found.values()] == list(found)


def test_a_loss_with_other_parameters_is_another_row(tmp_path: Path) -> None:
    study = config(
        tmp_path, "tables: [pairwise]\npairwise: [{loss: dpo}, {loss: {name: dpo, beta: 0.5}, learning_rate: 1e-5}]\nfocus: [dpo]\n"
    )
    assert {row.split(" · ")[0] for row in members(study, "pairwise")} == {"dpo", "dpo beta=0.5"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("align: {loss: {name: dpo}}", "align.loss and align.objective vary over the grid"),
        ("focus: [dpoo]", "focus: 'dpoo' is not a loss of pairwise or listwise; did you mean 'dpo'?"),
        ("pairwise: [{loss: dpo}, {loss: dpo}]", "name dpo twice"),
        ("pairwise: [{loss: {name: dpo, bta: 1}}]", "pairwise.0.loss.bta: unknown key; did you mean 'beta'?"),
        ("pairwise: [{loss: dpo, objectives: [ermm]}]", "pairwise.0.objectives.0: unknown objective 'ermm'; did you mean 'erm'?"),
        ("robust: {name: dro}", "dro uses no calibration factors"),
        ("robust: {scope: micro, lambda: 1}", "lambdas: auto needs robust.scope global"),
        ("rounds: {strategy: raft}", "name others in strategies"),
        ("tables: [pairwse]", "did you mean 'pairwise'?"),
        ("baselines: [golden_only]", "set testbed.one_source_per_record=true, or baselines=[]"),
        ("lambdas: [0]", "lambdas.0: must be greater than 0"),
        ("evaluate: {twins: [erm]}", "the grid has its own rows of erm"),
        ("data: {train: []}", "data: unknown key"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, text + "\n")
    assert message in caught.value.message


def test_a_repeated_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="each must be another mixture"):
        config(tmp_path, "", "seeds=[1, 1]")


# -------------------------------------------------------------------------------------------------------------- stages


def test_cells_on_the_same_data_share_everything_before_align(grid: Grid) -> None:
    shared = dict.fromkeys(("ingest", "truth", "sft", "reference", "classify", "calibrate"), 1)
    assert kinds(grid.stages[0]) == shared | {"align": 2, "evaluate": 2, "generate": 3, "judge": 3}
    assert grid.cells == 2 and len(grid.runs) == 4 and len(grid.inputs) == 4
    plain, robust = grid.runs[:2]
    assert plain.start_scores == robust.start_scores and plain.scores != robust.scores
    assert plain.calibration is None and robust.calibration is not None and robust.calibration.stage == "calibrate"


def test_seeds_share_nothing(grid: Grid) -> None:
    first, second = ({s.digest() for s in specs} for specs in grid.stages.values())
    assert len(first) == len(second) and not first & second


def test_every_stage_follows_what_it_reads_and_runs_in_one_process(grid: Grid) -> None:
    for specs in grid.stages.values():
        seen: set[str] = set()
        for spec in specs:
            assert {ref.digest for ref in spec.inputs().values()} <= seen
            assert spec.execution.workers == 0
            seen.add(spec.digest())


def test_the_chain_is_that_of_realign(grid: Grid, pair: StudyConfig, tmp_path: Path) -> None:
    """The robust cell of seed 0 has the digests that ``dora realign`` gives the same settings on the same files."""
    ingest = next(s for s in grid.stages[0] if s.stage == "ingest")
    align = pair.align.model_copy(update={"objective": pair.robust})
    same = RealignConfig(
        data=ingest.data,
        text=pair.text,
        policy=pair.policy,
        classifier=pair.classifier,
        calibration=pair.calibration,
        sft=pair.sft,
        align=align,
        compare=None,
    )
    digests = {s.digest() for spec in grid.stages[0] for s in (spec, *spec.preparation().values())}
    plan = build_plan(same, Store(str(tmp_path / "store")), until="evaluate")
    assert {s.digest for s in plan.stages if s.stage != "drift"} <= digests


def test_digests_depend_on_what_is_computed_only(pair: StudyConfig, grid: Grid, tmp_path: Path) -> None:
    def digests(*overrides: str) -> set[str]:
        text = (tmp_path / "s.yaml").read_text()
        (tmp_path / "again.yaml").write_text(text)
        study = load_config(tmp_path / "again.yaml", overrides, StudyConfig)
        return {s.digest() for s in build_grid(study, tmp_path / "data").stages[0]}

    before = {s.digest() for s in grid.stages[0]}
    assert digests() == before
    assert digests("execution.default.workers=7", "seeds=[0]", "bootstrap_samples=500") == before
    wider = digests("tables=[pairwise, noise]", "noise_levels=[0.2]")
    assert before < wider
    assert len(digests("robust.lambda=3") - before) == 4  # align, evaluate, generate, judge of the one robust cell


def test_exact_factors_come_from_the_truth_and_need_no_classifier(tmp_path: Path) -> None:
    study = config(tmp_path, "tables: [ablation]\nablation: [dora]\nfocus: [dpo]\n")
    runs = build_grid(study, tmp_path / "data").runs
    assert {run.cell.factors: run.calibration.stage for run in runs if run.calibration} == {"mixture": "calibrate", "exact": "truth"}


def test_noise_and_shift_change_only_what_reads_them(tmp_path: Path) -> None:
    """Labels enter align and evaluate, the golden reference enters the classifiers; start, reference and truth are the seed's own."""
    text = "tables: [noise, shifted_golden]\nfocus: [dpo]\nnoise_levels: [0.0, 0.4]\ngolden_shifts: [0.0, 1.0]\nseeds: [3]\n"
    study = config(tmp_path, "", *(f"{key}={value}" for key, value in (line.split(": ", 1) for line in text.splitlines())))
    grid = build_grid(study, tmp_path / "data")
    specs = grid.stages[3]
    assert [(s.testbed.seed, s.testbed.label_noise, s.testbed.golden_shift) for s in specs if s.stage == "truth"] == [(3, 0.0, 0.0)]
    count = {stage: sum(s.stage == stage for s in specs) for stage in ("ingest", "sft", "reference", "classify")}
    assert count == {"ingest": 3, "sft": 1, "reference": 1, "classify": 2}
    read = {run.cell.key(): (run.records, run.calibration) for run in grid.runs}
    assert len({records for records, _ in read.values()}) == 3
    robust = {
        (run.cell.label_noise, run.cell.golden_shift): run for run in grid.runs if run.cell.lam == "auto" and run.cell.objective == "dora"
    }
    assert robust[0.4, 0.0].calibration == robust[0.0, 0.0].calibration != robust[0.0, 1.0].calibration
    assert {s.sft.optimization.seed for s in specs if s.stage == "sft"} == {3}
    assert {s.align.optimization.seed for s in specs if s.stage == "align"} == {3}
    assert len({s.generate.seed for s in specs if s.stage == "generate"}) == 2, "the start draws other numbers than the policies"


def test_a_round_is_guarded_as_in_self_training_and_not_stopped(tmp_path: Path) -> None:
    """Samples, mixture and policy are looked at in every round; the policy against the round before. The tables tell what they said."""
    study = config(tmp_path, "tables: [rounds]\nfocus: [dpo]\nrounds: {rounds: 2}\nstrategies: []\n")
    grid = build_grid(study, tmp_path / "data")
    by_digest = {spec.digest(): spec for specs in grid.stages.values() for spec in specs}
    evaluation = {(run.seed, run.cell.objective, run.cell.round): run.evaluation for run in grid.runs}
    for run in grid.runs:
        guards = [by_digest[ref.digest] for ref in run.guards]
        assert [g.round for g in guards] == [run.cell.round] * (3 if run.cell.round else 0)
        if run.cell.round:
            assert guards[0].samples and guards[1].mix
            before = evaluation[run.seed, run.cell.objective, run.cell.round - 1]
            assert guards[2].evaluation == run.evaluation and guards[2].before == before


# ---------------------------------------------------------------------------------------------------------------- plan


def finish(spec: StageSpec, store: Store, seconds: float) -> None:
    write_spec(spec, store)
    folder = store.folder(spec.stage, spec.digest())
    store.mark_done(folder, {"stage": spec.stage, "digest": spec.digest(), "seconds": seconds, "facts": {}})


def test_a_plan_is_one_batch_per_seed_and_the_tables(pair: StudyConfig, grid: Grid, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    plan = plan_study(pair, grid, store)
    count = len(grid.stages[0])
    assert [(s.label, s.stage) for s in plan.stages] == [("seed 0", "batch"), ("seed 1", "batch"), ("tables", "study")]
    assert plan.stages[0].reason == f"runs: {count} of {count} stages, 0 cached" and plan.stages[2].reason == "runs: first time"
    assert plan.upstream(plan.stages[2]) == ["seed 0", "seed 1"]
    assert plan.needs_ray and plan.to_json()["estimated_seconds"] is None

    for spec in grid.stages[0]:
        finish(spec, store, 2.0)
    plan = plan_study(pair, grid, store)
    assert plan.stages[0].reason == f"runs: 0 of {count} stages, {count} cached"
    assert plan.stages[0].is_local and not plan.stages[0].cached  # only the batch's own record is missing
    assert plan.stages[1].seconds == count * 2.0 / 2  # mean seconds of finished stages, on two workers

    for stage in plan.stages:
        finish(stage.spec, store, 1.0)
    for spec in grid.stages[1]:
        finish(spec, store, 2.0)
    plan = plan_study(pair, grid, store)
    assert plan.to_run == [] and not plan.needs_ray and plan.stages[1].reason == f"cached: all {count} stages"


def test_an_estimate_from_the_last_grid(pair: StudyConfig, grid: Grid, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    for spec in (s for specs in grid.stages.values() for s in specs):
        finish(spec, store, 3.0)
    write_latest(store, plan_study(pair, grid, store), "study-1")
    other = pair.model_copy(update={"seeds": [8]})
    new = build_grid(other, tmp_path / "data")
    plan = plan_study(other, new, store)
    assert plan.stages[0].seconds == len(new.stages[8]) * 3.0 / 2
    assert plan.stages[1].reason == "runs: the grid or its settings changed"


def test_dry_run_shows_the_plan_and_writes_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))
    config(tmp_path, "tables: [pairwise]\npairwise: [{loss: dpo}]\nfocus: [dpo]\n")
    shown = CliRunner().invoke(app, ["study", "-c", str(tmp_path / "s.yaml"), "--dry-run"])
    assert shown.exit_code == 0 and "3 of 3 stages run" in shown.stdout and "2 cells, 2 seeds: 32 stages" in shown.stdout
    printed = CliRunner().invoke(app, ["study", "-c", str(tmp_path / "s.yaml"), "--dry-run", "--json", "--set", "seeds=[5]"])
    document = json.loads(printed.stdout)
    assert [s["label"] for s in document["stages"]] == ["seed 5", "tables"] and document["stages_of_all_seeds"] == 16
    assert not (tmp_path / "home" / "store" / "runs").exists()


@pytest.mark.parametrize("name", ["quick", "full"])
def test_presets_have_rows_in_every_table(name: str) -> None:
    study = load_preset(f"study-{name}.yaml", [], StudyConfig)
    assert all(members(study, table) for table in study.tables)
    assert len(study.seeds) == {"quick": 2, "full": 5}[name]


def test_a_study_needs_one_configuration() -> None:
    for arguments in ([], ["--preset", "quick", "-c", "x.yaml"]):
        done = CliRunner().invoke(app, ["study", *arguments])
        assert done.exit_code == 2 and "dora study --preset quick" in done.stderr

"""The plan, with real specs and a real store; results are written as a stage would, without running any."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dora_core.data import fingerprints, inputs
from dora_core.errors import ConfigError, DataError
from flows.cli import app
from flows.config.loading import load_config
from flows.config.models import RealignConfig, SelfTrainConfig
from flows.planning.latest import write_latest
from flows.planning.plan import build_plan
from flows.planning.planned_stage import Plan
from infra.store.store import Store
from infra.tracking import model_registry
from tasks.runtime.stage import execute, write_spec
from tasks.stages import ingest

JUDGED = ["reward", "generate", "judge", "generate start", "judge start", "judge chosen", "compare"]
ALL = ["ingest", "drift", "classify", "calibrate", "sft", "reference", "training_data", "align", *JUDGED, "evaluate", "promote"]

TWIN, TWIN_DATA = "align (erm twin)", "training_data (erm twin)"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def config(tmp_path: Path, mixture: Path) -> RealignConfig:
    return load(tmp_path, mixture)


def load(folder: Path, data: Path, *overrides: str) -> RealignConfig:
    (folder / "c.yaml").write_text(f"project: demo\ndata: {{train: [{{path: {data}}}]}}\n")
    return load_config(folder / "c.yaml", overrides)


FACTS: dict[str, dict[str, Any]] = {
    "ingest": {
        "records": {"train": 36, "eval": 4},
        "rows_in": 40,
        "rows_bad": 0,
        "golden_rows": 0,
        "bad_by_reason": {},
        "sources": {},
        "fingerprint": "0" * 64,
    },
    "promote": {"decision": "promoted", "model_name": "demo", "version": "1", "reasons": [], "aliases": {}},
}
"""What a plan reads of the facts of finished stages."""


def finish(store: Store, plan: Plan, *, run_id: str = "demo-1", labels: list[str] | None = None) -> None:
    """What a successful run leaves behind, as far as a plan looks at it."""
    for stage in plan.stages:
        if labels is None or stage.label in labels:
            folder = store.folder(stage.stage, stage.digest)
            (folder.path / "output.bin").write_bytes(b"x")
            result = {"stage": stage.stage, "digest": stage.digest, "seconds": 2.0, "facts": FACTS.get(stage.stage, {})}
            store.mark_done(folder, result | {"spec": stage.spec.payload(), "inputs": {}, "rows": 1, "metrics": {}})
    if labels is None:
        write_latest(store, plan, run_id)


def reasons(plan: Plan) -> dict[str, str]:
    return {stage.label: stage.reason for stage in plan.stages}


def test_a_first_run_runs_everything_in_order(config: RealignConfig, store: Store) -> None:
    plan = build_plan(config, store)
    assert [s.label for s in plan.stages] == ALL
    assert set(reasons(plan).values()) == {"runs: first time"}
    assert plan.needs_ray and plan.records is None
    assert plan.to_json()["estimated_seconds"] is None


def test_specs_point_at_their_inputs(config: RealignConfig, store: Store) -> None:
    plan = build_plan(config, store)
    by_label = {s.label: s for s in plan.stages}
    upstream = {s.label: plan.upstream(s) for s in plan.stages}
    assert upstream["ingest"] == []
    assert upstream["calibrate"] == ["ingest", "classify"]
    assert upstream["training_data"] == ["ingest", "calibrate", "sft", "reference"]
    assert upstream["align"] == ["ingest", "calibrate", "sft", "reference", "training_data"]
    assert upstream["promote"] == ["align", "evaluate"]
    direct = {s.label: plan.direct(s) for s in plan.stages}
    assert direct["promote"] == ["evaluate"] and direct["align"] == ["training_data"] and direct["calibrate"] == ["classify"]
    assert direct["training_data"] == ["calibrate", "reference"], "sft and ingest are above reference"
    finish(store, plan)
    again = build_plan(config, store)
    assert {s.label: again.upstream(s) for s in again.stages} == upstream  # the previous classifier is a hint, not an input
    assert by_label["evaluate"].spec.inputs()["policy"].digest == by_label["align"].digest


def labelled(folder: Path) -> Path:
    """Rows that the preset kto recognises: one response with an approval."""
    rows = [{"prompt": f"q {i}", "completion": f"a {i}", "label": i % 2 == 0, "annotator": "ann"} for i in range(40)]
    path = folder / "kto.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_that_the_loss_cannot_read_are_refused_before_anything_runs(tmp_path: Path, store: Store) -> None:
    """A schema is known only with the rows. Read before or not, the refusal is the same; calibration alone needs no loss."""
    kto = load(tmp_path, labelled(tmp_path), "data.train=[{path: kto.jsonl, source: human}]", "align.loss.name=kto")
    plan = build_plan(kto, store)
    (spec,) = (stage.spec for stage in plan.stages if stage.label == "ingest")
    for _ in range(2):
        dpo = load(tmp_path, labelled(tmp_path), "data.train=[{path: kto.jsonl, source: human}]")
        with pytest.raises(DataError, match=r"data.train\[0\]: rows are unpaired .* align.loss.name: dpo compares") as error:
            build_plan(dpo, store)
        assert "set align.loss.name to bco or kto" in error.value.hint
        build_plan(dpo, store, until="calibrate")
        folder = store.folder("ingest", spec.digest())
        facts = FACTS["ingest"] | {"inputs": [given(shape="unpaired", adapter="carry: [annotator]")]}
        result = {"stage": "ingest", "digest": spec.digest(), "seconds": 2.0, "facts": facts, "spec": spec.payload()}
        store.mark_done(folder, result | {"inputs": {}, "rows": 1, "metrics": {}})


def given(**mapping: Any) -> dict[str, Any]:
    """Facts of an input."""
    columns: dict[str, Any] = {key: [] for key in ("used", "carried", "ignored", "unread", "files")}
    counts = dict.fromkeys(("rows", "records", "bad", "duplicates", "renamed", "ties", "unmeasured", "split_given"), 0)
    counts |= dict.fromkeys(("not_selected", "weighted_out", "copies"), 0)
    mapped = columns | {"file_count": 1, "preset": None, "recognised": False} | mapping
    return counts | {"place": "data.train[0]", "path": "a", "mappings": [mapped], "splits": {"train": 36, "eval": 4}, "notes": {}}


def test_groups_of_the_evaluation_are_carried_columns(tmp_path: Path, store: Store) -> None:
    data = labelled(tmp_path)
    train = "data.train=[{path: kto.jsonl, source: human}]"
    plan = build_plan(load(tmp_path, data, train, "align.loss.name=kto", "evaluate.groups=[annotator]"), store)
    spec = next(stage.spec for stage in plan.stages if stage.label == "evaluate")
    assert spec.payload()["evaluate"]["groups"] == [{"column": "annotator", "bins": 5, "most": 12}]
    with pytest.raises(ConfigError, match=r"evaluate.groups\[0\]: no held-out input carries the column 'anotator'") as error:
        build_plan(load(tmp_path, data, train, "align.loss.name=kto", "evaluate.groups=[anotator]"), store)
    assert "did you mean 'annotator'?" in error.value.hint
    plain = build_plan(load(tmp_path, data, train, "align.loss.name=kto"), store)
    changed = {one.label for one, other in zip(plan.stages, plain.stages, strict=True) if one.digest != other.digest}
    assert changed == {"evaluate", "promote"}, "no other stage depends on the groups"


def test_nothing_changed_means_nothing_to_do(config: RealignConfig, store: Store) -> None:
    finish(store, build_plan(config, store))
    plan = build_plan(config, store)
    assert plan.to_run == [] and not plan.needs_ray
    assert set(reasons(plan).values()) == {"cached: same inputs and settings as demo-1"}
    assert plan.records == 40


def test_a_setting_reruns_its_stage_and_what_depends_on_it(tmp_path: Path, mixture: Path, config: RealignConfig, store: Store) -> None:
    finish(store, build_plan(config, store))
    plan = build_plan(load(tmp_path, mixture, "align.objective.lambda=2.0"), store)
    assert [s.label for s in plan.to_run] == ["align", "generate", "judge", "compare", "evaluate", "promote"]
    assert reasons(plan)["align"] == "runs: align.objective.lambda auto → 2.0"
    assert reasons(plan)["evaluate"] == "runs: align, compare changed"
    assert reasons(plan)["promote"] == "runs: evaluate, align changed"
    assert plan.to_json()["estimated_seconds"] == 12.0


def test_the_policy_is_named_as_in_the_configuration(tmp_path: Path, mixture: Path, config: RealignConfig, store: Store) -> None:
    finish(store, build_plan(config, store))
    changed = reasons(build_plan(load(tmp_path, mixture, "policy.layers=3"), store))
    assert changed["sft"] == "runs: policy.layers 2 → 3"
    assert changed["reference"] == "runs: policy.layers 2 → 3; sft changed"
    assert changed["classify"].startswith("cached")


def test_new_data_reruns_everything_and_offers_the_old_classifier(tmp_path: Path, mixture: Path, store: Store) -> None:
    data = tmp_path / "data.parquet"
    table = pq.read_table(mixture)
    pq.write_table(table.slice(0, 30), data)
    first = build_plan(load(tmp_path, data), store)
    finish(store, first)
    pq.write_table(table, data)
    plan = build_plan(load(tmp_path, data), store)
    assert len(plan.to_run) == len(ALL)
    assert reasons(plan)["ingest"] == "runs: data.parquet has new content"
    assert reasons(plan)["calibrate"] == "runs: ingest, classify changed"
    old = {s.label: s.digest for s in first.stages}
    new = {s.label: s.spec for s in plan.stages}
    previous = new["drift"].previous
    assert {ref.stage: ref.digest for _, ref in previous} == {stage: old[stage] for stage in ("ingest", "classify", "calibrate")}
    assert "previous" not in new["drift"].payload() and "drift" not in new["classify"].payload()
    assert new["classify"].drift == new["drift"].ref() and plan.upstream(plan.stages[2]) == ["ingest", "drift"]


def test_how_it_runs_changes_no_digest(tmp_path: Path, mixture: Path, config: RealignConfig, store: Store) -> None:
    finish(store, build_plan(config, store))
    plan = build_plan(load(tmp_path, mixture, "execution.default.workers=7", "execution.align.micro_batch_size=1"), store)
    assert plan.to_run == []


def test_a_damaged_result_is_computed_again(config: RealignConfig, store: Store) -> None:
    plan = build_plan(config, store)
    finish(store, plan)
    align = next(s for s in plan.stages if s.label == "align")
    (store.folder("align", align.digest).path / "output.bin").unlink()
    again = build_plan(config, store)
    assert [s.label for s in again.to_run] == ["align"]
    assert reasons(again)["align"] == "runs: its result was deleted or damaged"


def test_training_data_is_needed_only_where_a_stage_that_reads_it_runs(
    tmp_path: Path, mixture: Path, config: RealignConfig, store: Store
) -> None:
    """A store of an earlier release has none of it, and neither has one that was collected."""
    plan = build_plan(config, store)
    finish(store, plan)
    data, align = (next(s for s in plan.stages if s.label == label) for label in ("training_data", "align"))
    (store.folder("training_data", data.digest).path / "result.json").unlink()
    cached = build_plan(config, store)
    assert cached.to_run == [] and not cached.needs_ray
    assert [s.label for s in cached.stages] == [label for label in ALL if label != "training_data"]
    assert [s.label for s in cached.not_needed] == ["training_data"]
    (store.folder("align", align.digest).path / "output.bin").unlink()
    for again in (build_plan(config, store), cached.checked(store)):
        assert [s.label for s in again.stages] == ALL and again.not_needed == ()
        assert [s.label for s in again.to_run] == ["training_data", "align"]
    other = build_plan(load(tmp_path, mixture, "align.objective.lambda=2.0"), store)
    assert [s.label for s in other.to_run][:2] == ["training_data", "align"]


def test_training_data_that_goes_before_the_run_begins_is_not_computed_for_nothing(config: RealignConfig, store: Store) -> None:
    plan = build_plan(config, store)
    finish(store, plan)
    planned = build_plan(config, store)
    data = next(s for s in planned.stages if s.label == "training_data")
    assert data.cached
    (store.folder("training_data", data.digest).path / "output.bin").unlink()
    assert planned.checked(store).to_run == []


def test_an_interrupted_stage_says_so(config: RealignConfig, store: Store) -> None:
    plan = build_plan(config, store)
    finish(store, plan, labels=["ingest", "drift", "classify"])
    write_spec(plan.stages[3].spec, store)
    again = reasons(build_plan(config, store))
    assert again["classify"] == "cached: computed before from the same inputs and settings"
    assert again["calibrate"] == "runs: an earlier attempt did not finish; what it completed is kept"
    assert again["sft"] == "runs: first time"


def test_the_twin_is_one_more_training_and_leaves_the_policy_alone(
    tmp_path: Path, mixture: Path, config: RealignConfig, store: Store
) -> None:
    finish(store, build_plan(config, store))
    plan = build_plan(load(tmp_path, mixture, "evaluate.twins=[erm]"), store)
    assert [s.label for s in plan.to_run] == [TWIN_DATA, TWIN, "generate erm twin", "judge erm twin", "compare", "evaluate", "promote"]
    assert reasons(plan)[TWIN] == "runs: first time"
    twin = next(s for s in plan.stages if s.label == TWIN)
    assert twin.spec.align.objective.name == "erm" and twin.spec.calibration is None
    assert reasons(plan)["evaluate"] == f"runs: evaluate.twins [] → ['erm']; {TWIN}, compare changed"


def test_the_twin_does_not_depend_on_what_erm_ignores(tmp_path: Path, mixture: Path, store: Store) -> None:
    def twin(*overrides: str) -> str:
        plan = build_plan(load(tmp_path, mixture, "evaluate.twins=[erm]", *overrides), store)
        return next(s.digest for s in plan.stages if s.label == TWIN)

    assert twin() == twin("align.objective.lambda=3", "calibration.form=paper", "calibration.aggregate=min")
    assert twin() != twin("align.loss={name: dpo, beta: 0.2}")


def test_twins_of_part_of_the_records_prepare_their_data_before_anything_is_aligned(
    tmp_path: Path, mixture: Path, config: RealignConfig, store: Store
) -> None:
    before = build_plan(config, store)
    plan = build_plan(load(tmp_path, mixture, "evaluate.twins=[golden_only,golden_only_epochs,synthetic_only]"), store)
    labels = [stage.label for stage in plan.stages]
    data = ["training_data (golden_only twin)", "training_data (synthetic_only twin)"]
    assert [label for label in labels if label.startswith("training_data")] == [*data, "training_data"], "both golden twins share theirs"
    assert labels.index("align") > labels.index(data[1])
    specs = {stage.label: stage.spec for stage in plan.stages}
    golden, epochs = (specs[f"align ({name} twin)"] for name in ("golden_only", "golden_only_epochs"))
    assert golden.selection.records == "golden" and golden.selection.golden_sources == ["human"]
    assert (golden.equal_steps, epochs.equal_steps) == (True, False) and golden.calibration is None
    assert specs["evaluate"].twins["golden_only"] == golden.ref()
    assert specs["align"].digest() == next(stage.digest for stage in before.stages if stage.label == "align")


def test_objective_auto_races_before_it_aligns(tmp_path: Path, mixture: Path, store: Store) -> None:
    plan = build_plan(load(tmp_path, mixture, "align.objective.name=auto", "evaluate.twins=[erm]"), store)
    specs = {stage.label: stage.spec for stage in plan.stages}
    labels = list(specs)
    assert labels.index("calibrate") < labels.index("value") < labels.index("race") < labels.index("training_data") < labels.index("align")
    race = specs["race"].ref()
    assert specs["race"].inputs() == {name: specs[stage].ref() for name, stage in (
        ("records", "ingest"), ("calibration", "calibrate"), ("value", "value"))}  # fmt: skip
    # The race's tables stand in place of the factors and of the trust; the twin without robustness knows neither.
    assert {specs["align"].inputs()[name] for name in ("calibration", "trust", "race")} == {race}
    assert not {"calibration", "trust", "race"} & specs[TWIN].inputs().keys()


@pytest.mark.parametrize("setting", ["align.loss={name: lire}", "align.label_probability=ignore"])
def test_the_race_softens_no_label_that_alignment_could_not_use(tmp_path: Path, mixture: Path, store: Store, setting: str) -> None:
    def trust(*settings: str) -> str:
        plan = build_plan(load(tmp_path, mixture, "align.objective.name=auto", *settings), store)
        return next(stage.spec for stage in plan.stages if stage.label == "race").trust.method

    assert (trust(), trust(setting)) == ("auto", "off")


def test_features_of_the_policy_make_the_proxy_wait_for_the_start(tmp_path: Path, mixture: Path, store: Store) -> None:
    plan = build_plan(load(tmp_path, mixture, "align.objective.name=auto", "exchange.features=both"), store)
    specs = {stage.label: stage.spec for stage in plan.stages}
    labels = list(specs)
    assert labels.index("sft") < labels.index("value") < labels.index("race")
    assert {specs[name].start for name in ("value", "race", "reference")} == {specs["sft"].ref()}


def test_a_race_by_training_trains_its_finalists_before_it_aligns(tmp_path: Path, mixture: Path, store: Store) -> None:
    plan = build_plan(load(tmp_path, mixture, "align.objective.name=auto", "race.by=training", "race.finalists=3", "race.minutes=5"), store)
    specs = {stage.label: stage.spec for stage in plan.stages}
    labels = list(specs)
    data = [f"training_data ({name})" for name in ("choice", "other", "golden_only")]
    assert [label for label in labels if label.startswith("training_data (")] == data
    assert labels[labels.index("reference") + 1 : labels.index("align") + 1] == [*data, "tune", "finals", "training_data", "align"]
    assert [trial.recipe for trial in specs["tune"].specs] == ["choice", "other", "golden_only"] and specs["tune"].minutes == 5
    assert {specs["align"].inputs()[name] for name in ("calibration", "trust", "race")} == {specs["finals"].ref()}
    assert {trial.race for trial in specs["tune"].specs} == {specs["race"].ref()}
    assert specs["race"].payload()["race"].keys() == {"objectives", "seed", "by"}, "other budgets are the same race"
    by_proxy = build_plan(load(tmp_path, mixture, "align.objective.name=auto"), store)
    other = next(stage.spec for stage in by_proxy.stages if stage.label == "race")
    assert other.payload()["race"].keys() == {"objectives", "seed"}, "the digest of a race by proxy is that of before"


def test_every_round_races_again_on_its_own_mixture(tmp_path: Path, mixture: Path, store: Store) -> None:
    text = f"project: demo\ndata: {{train: [{{path: {mixture}}}]}}\nalign: {{objective: {{name: auto}}}}\nrounds: {{rounds: 2}}\n"
    (tmp_path / "rounds.yaml").write_text(text)
    plan = build_plan(load_config(tmp_path / "rounds.yaml", model=SelfTrainConfig), store)
    specs = {stage.label: stage.spec for stage in plan.stages}
    for before, mix in (("", "ingest"), ("r1 ", "r1 mix"), ("r2 ", "r2 mix")):
        assert specs[f"{before}race"].records == specs[f"{before}value"].records == specs[mix].ref()
        assert specs[f"{before}align"].race == specs[f"{before}race"].ref() == specs[f"{before}align"].calibration
    with pytest.raises(ConfigError, match="keeps no given record"):
        load_config(tmp_path / "rounds.yaml", ["rounds.mix.given_fraction=0"], SelfTrainConfig)


def test_trust_beside_a_race_is_refused(tmp_path: Path, mixture: Path) -> None:
    with pytest.raises(ConfigError, match=r"trust\.apply=soft_label: with align\.objective\.name=auto the race decides"):
        load(tmp_path, mixture, "align.objective.name=auto", "trust.apply=soft_label")


def test_objectives_without_factors_score_nothing(tmp_path: Path, mixture: Path, store: Store) -> None:
    config = load(tmp_path, mixture, "align.objective.name=dro", "evaluate.twins=[erm]", "compare=null")
    expected = ["ingest", "sft", "reference", "training_data", "align", TWIN, "evaluate", "promote"]
    assert [s.label for s in build_plan(config, store).stages] == expected, "the twin reads the same training data"
    erm = load(tmp_path, mixture, "align.objective.name=erm", "evaluate.twins=[erm]")
    assert TWIN not in reasons(build_plan(erm, store))
    assert [s.label for s in build_plan(erm, store, until="calibrate").stages] == ["ingest", "drift", "classify", "calibrate"]


def test_dropping_calibration_is_a_reason(tmp_path: Path, mixture: Path, config: RealignConfig, store: Store) -> None:
    finish(store, build_plan(config, store))
    plan = build_plan(load(tmp_path, mixture, "align.objective.name=erm"), store)
    assert reasons(plan)["align"] == "runs: no calibration any more; align.objective.name dora → erm"


def test_a_partial_command_keeps_what_is_known_about_later_stages(config: RealignConfig, store: Store) -> None:
    finish(store, build_plan(config, store), run_id="demo-1")
    write_latest(store, build_plan(config, store, until="align"), "demo-2")
    known = reasons(build_plan(config, store))
    assert known["align"].endswith("demo-2") and known["promote"].endswith("demo-1")


def test_dry_run_shows_the_plan_and_writes_no_run(tmp_path: Path, mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))
    load(tmp_path, mixture)
    shown = CliRunner().invoke(app, ["realign", "-c", str(tmp_path / "c.yaml"), "--dry-run"])
    assert shown.exit_code == 0 and f"{len(ALL)} of {len(ALL)} stages run" in shown.stdout
    printed = CliRunner().invoke(app, ["realign", "-c", str(tmp_path / "c.yaml"), "--dry-run", "--json"])
    assert [s["label"] for s in json.loads(printed.stdout)["stages"]] == ALL
    assert not (tmp_path / "home" / "store" / "runs").exists()


def test_after_the_first_plan_neither_plan_nor_ingest_hashes_an_unchanged_input(
    config: RealignConfig, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fingerprints, "SETTLED", 0)
    plan = build_plan(config, store)
    assert (tmp_path / "home" / "fingerprints.json").is_file()
    monkeypatch.setattr(inputs, "hashlib", SimpleNamespace(sha256=lambda: pytest.fail("an input was hashed again")))
    again = build_plan(config, store)
    assert again.inputs == plan.inputs and [s.digest for s in again.stages] == [s.digest for s in plan.stages]
    spec = again.stages[0].spec
    assert isinstance(spec, ingest.Spec) and execute(spec, ingest.run, store)["rows"] > 0


def test_the_champion_is_looked_up_after_a_promotion_and_with_a_registry(
    config: RealignConfig, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[str, str]]()
    monkeypatch.setattr(model_registry, "alias_tags", lambda uri, name: asked.append((uri, name)) or {})
    finish(store, build_plan(config, store, mlflow_uri="sqlite:///m.db"))
    assert asked == [], "nothing was promoted before"
    build_plan(config, store)
    assert asked == [], "no registry is given"
    build_plan(config, store, mlflow_uri="sqlite:///m.db")
    assert asked == [("sqlite:///m.db", "demo")]


def test_a_run_continues_from_the_champion_and_is_judged_against_the_base(
    config: RealignConfig, store: Store, tmp_path: Path, mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags: dict[str, dict[str, str]] = {}
    monkeypatch.setattr(model_registry, "alias_tags", lambda uri, name: tags)
    registry, keys = "sqlite:///m.db", ("policy.start=champion", "policy.replay=0.5")
    first = build_plan(load(tmp_path, mixture, *keys), store, mlflow_uri=registry)
    assert "no champion yet" in first.notes[0]
    assert [s.digest for s in first.stages] == [*[s.digest for s in build_plan(config, store).stages][:-1], first.stages[-1].digest], (
        "a first night is that of the base; only the decision names its configuration"
    )
    finish(store, first)
    tonight = tmp_path / "tonight.parquet"
    pq.write_table(pq.read_table(mixture).slice(0, 30), tonight)
    one = {s.label: s for s in first.stages}
    tags["champion"] = {"dora.stage": "align", "dora.digest": one["align"].digest}
    second = build_plan(load(tmp_path, tonight, *keys), store, mlflow_uri=registry)
    two = {s.label: s for s in second.stages}
    assert [*two] == [
        *("ingest", "drift", "replay", "classify", "calibrate", "reference", "training_data", "align", "reference base"),
        *(*JUDGED[:5], "generate champion", "judge champion", *JUDGED[5:], "evaluate", "promote"),
    ]
    champion, base, given = one["align"].spec.ref(), one["sft"].spec.ref(), two["ingest"].spec.ref()
    assert two["replay"].spec.inputs() == {"records": given, "earlier": one["ingest"].spec.ref()}
    assert two["replay"].spec.replay == 0.5  # type: ignore[attr-defined]
    inputs_of = {label: two[label].spec.inputs() for label in ("classify", "reference", "align", "evaluate", "generate start")}
    trained = two["replay"].spec.ref()
    assert {inputs_of[label]["records"] for label in ("classify", "reference", "align")} == {trained}
    assert inputs_of["align"]["start"] == inputs_of["reference"]["start"] == champion
    assert inputs_of["evaluate"]["start"] == inputs_of["generate start"]["policy"] == base and inputs_of["evaluate"]["records"] == given
    assert inputs_of["evaluate"]["reference"] == two["reference base"].spec.ref()
    finish(store, second, run_id="demo-2")
    tags["previous"], tags["champion"] = tags["champion"], {"dora.stage": "align", "dora.digest": two["align"].digest}
    again = build_plan(load(tmp_path, tonight, *keys), store, mlflow_uri=registry)
    assert "starts where the champion's did" in again.notes[0] and again.to_run == []


@pytest.mark.parametrize("setting", ["gate.max_kl=null", "evaluate.kl_prompts=0"])
def test_a_continued_run_without_a_limit_on_kl_is_refused(tmp_path: Path, mixture: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match="only the gate bounds how far they move from the base"):
        load(tmp_path, mixture, "policy.start=champion", setting)


def test_benchmarks_are_refused_before_anything_runs_where_lm_eval_is_missing(
    tmp_path: Path, mixture: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmarks = load(tmp_path, mixture, "benchmarks.tasks=[arc_easy]")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="lm-eval, which is not installed"):
        build_plan(benchmarks, store)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"benchmarks.tasks.0.*no such file"):
        load(tmp_path, mixture, "benchmarks.tasks=[./gone.yaml]")


def test_an_optimiser_that_is_not_installed_is_refused_before_anything_runs(
    tmp_path: Path, mixture: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = load(tmp_path, mixture, "align.optimization.optimizer=adamw_8bit")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"align.optimization.optimizer=adamw_8bit needs torchao"):
        build_plan(wanted, store)

"""Drift of new data against the last run's: what is called drift, what is not, and what follows for the classifiers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dora_core.config.method import CalibrationConfig, ClassifierConfig, ModelConfig
from dora_core.config.rounds import DriftConfig
from dora_core.errors import DataError
from dora_core.testbed.mixture import Testbed, TestbedConfig
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages import calibrate, classify, drift
from tasks.stages._drift_measures import JUDGEABLE, rule
from tests.tasks.classified import ingested
from tests.tasks.conftest import GOLDEN, IN_PROCESS

WORLD = TestbedConfig(prompts=300, responses_per_prompt=4, sources=2, alpha=0.3)
CONFIG = ClassifierConfig(
    encoder=ModelConfig(hidden_size=16, layers=1, heads=2, vocab_size=600),
    folds=2,
    epochs=1.0,
    batch_tokens=2048,
    max_prompt_tokens=16,
    max_response_tokens=96,
)
GROWS = DriftConfig(refit_growth=None)

Row = dict[str, Any]


def added(seed: int, prompts: int = 300, round: int = 0, **changes: Any) -> list[Row]:
    """Rows on other prompts than the first run's; ``drift`` is added to the shift once a round."""
    known = {row["prompt"] for row in Testbed(WORLD).generate()}
    rows = Testbed(WORLD.model_copy(update={"seed": seed} | changes), round=round).generate()
    return [row | {"id": f"{seed}-{row['id']}"} for row in rows if row["prompt"] not in known][:prompts]


@dataclass
class Runs:
    """The first run, and a folder for what comes after it."""

    store: Store
    folder: Path
    rows: list[Row]
    first: drift.Previous

    def specs(self, name: str, rows: list[Row] | StageRef, config: DriftConfig, previous: drift.Previous | None, **classifier: Any):
        records = rows if isinstance(rows, StageRef) else ingested(self.store, self.folder / name, rows)
        settings = CONFIG.model_copy(update=classifier)
        common: dict[str, Any] = {"records": records, "golden_sources": GOLDEN, "execution": IN_PROCESS}
        drifted = drift.Spec(**common, classifier=settings, calibration=CalibrationConfig(), drift=config, previous=previous)
        fit = classify.Spec(**common, classifier=settings, drift=drifted.ref())
        return drifted, fit, calibrate.Spec(**common, classifier=fit.ref(), calibration=CalibrationConfig())

    def drift(self, name: str, rows: list[Row] | StageRef, config: DriftConfig = GROWS, **classifier: Any) -> dict[str, Any]:
        return execute(self.specs(name, rows, config, self.first, **classifier)[0], drift.run, self.store)["facts"]


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("first")
    runs = Runs(Store(str(folder / "store")), folder, Testbed(WORLD).generate(), None)  # type: ignore[arg-type]
    drifted, fit, factors = runs.specs("first", runs.rows, GROWS, None)
    for spec, stage in ((drifted, drift), (fit, classify), (factors, calibrate)):
        execute(spec, stage.run, runs.store)
    runs.first = drift.Previous(records=drifted.records, classify=fit.ref(), calibrate=factors.ref())
    return runs


@pytest.fixture
def runs(first_run: Runs, tmp_path: Path) -> Runs:
    shutil.copytree(first_run.store.local_root, tmp_path / "store")
    return Runs(Store(str(tmp_path / "store")), tmp_path, first_run.rows, first_run.first)


def rules_of(facts: dict[str, Any], name: str) -> dict[str | None, dict[str, Any]]:
    return {one["source"]: one for one in facts["rules"] if one["name"] == name}


# ------------------------------------------------------------------------------------------------------------------ rules


def test_the_worst_source_speaks_for_its_kind_and_every_key_is_named():
    moved = [
        rule(DriftConfig(), "length_shift", name, value, 0.05, f"lengths of {name}")
        for name, value in (("a", 0.9), ("b", 0.99), ("c", 0.5))
    ]
    rules = [*moved, rule(DriftConfig(), "share_shift", None, 0.7, 0.05, "shares")]
    found = drift.decide("never", rules, StageRef(stage="classify", digest="0" * 64), "no head", 9)
    assert found.decision == "refuse" and found.reason == (
        "lengths of b: beyond drift.refuse_length_shift = 0.8 (and 1 more of its kind); shares: beyond drift.refuse_share_shift = 0.6"
    )
    assert drift.stop(rules).hint == (
        "look at the new rows of all sources and of b; if the change is intended, raise drift.refuse_length_shift to 0.94, "
        "drift.refuse_share_shift to 0.65 or more, or set it to null"
    )


# ------------------------------------------------------------------------------------------------------- what is no drift


def test_a_first_run_has_nothing_to_compare_with(first_run):
    facts = first_run.store.read_result("classify", first_run.first.classify.digest)["facts"]
    assert facts["reused"] is False and facts["reason"] == "no earlier run to compare with"


def test_the_same_data_again_is_reused_and_nothing_is_scored(runs):
    facts = runs.drift("same", runs.first.records, DriftConfig())
    assert (facts["decision"], facts["keep"]) == ("reuse", runs.first.classify.model_dump())
    assert facts["reason"] == "no training response is new since the fit" and facts["stop"] is None
    assert {one["name"]: one["value"] for one in facts["rules"] if one["value"] is not None} == {"growth": 0.0, "share_shift": 0.0}


@pytest.mark.parametrize(("seed", "replaced"), [(1, False), (2, True), (3, True)])
def test_more_of_the_same_distribution_is_reused(runs, seed, replaced):
    """A batch appended, or a new one of the same size instead: the figures are not 0, and no rule is broken."""
    facts = runs.drift("more", added(seed) if replaced else runs.rows + added(seed, 60))
    assert facts["decision"] == "reuse", facts["reason"]
    judged = [one for one in facts["rules"] if one["value"] is not None]
    assert {one["name"] for one in judged} == {"growth", "share_shift", "length_shift", "auc_drop", "h_shift"}
    assert all(one["value"] > 0 for one in judged if one["name"].endswith("_shift"))
    assert "AUC of" in facts["reason"]


def test_the_figures_are_those_of_the_data(runs):
    new = added(1, 60)
    facts = runs.drift("more", runs.rows + new)
    tables = [pq.read_table(runs.store.fetch("ingest", ref["digest"]) / "records.parquet") for ref in (facts["previous"]["records"],)]
    before = [s for r in tables[0].filter(np.array(tables[0]["split"]) == "train")["sources"].to_pylist() for s in r]
    shown = facts["sources"]["human"]
    assert shown["responses"]["before"] == before.count("human")
    assert shown["responses"]["now"] == before.count("human") + shown["responses"]["new"]
    assert shown["share"]["before"] == pytest.approx(before.count("human") / len(before))
    shares = [[source["share"][side] for source in facts["sources"].values()] for side in ("before", "now")]
    assert rules_of(facts, "share_shift")[None]["value"] == pytest.approx(np.abs(np.subtract(*shares)).sum() / 2)
    assert sum(shares[1]) == pytest.approx(1.0)
    assert set(shown["length"]["before"]) == set(shown["h"]["new"]) == {"0.05", "0.25", "0.5", "0.75", "0.95"}


def test_old_h_is_that_of_the_calibration_table(runs):
    facts = runs.drift("more", runs.rows + added(1, 60))
    table = pq.read_table(runs.store.fetch("calibrate", runs.first.calibrate.digest) / "calibration.parquet")
    shares = runs.store.read_result("calibrate", runs.first.calibrate.digest)["facts"]["shares"]
    names = [name for name in shares if name != "golden"]
    h = 1 / (shares["golden"] + sum(shares[name] / table[f"w_{name}"].to_numpy() for name in names))
    for name in ("human", *names):
        own = np.array(table["source"]) == name
        assert facts["sources"][name]["h"]["before"]["0.5"] == pytest.approx(np.median(h[own]))


# ---------------------------------------------------------------------------------------------------------------- drift


def test_growth_refits(runs):
    facts = runs.drift("more", added(1) + runs.rows, DriftConfig(refit_growth=0.25))
    assert facts["decision"] == "refit" and facts["keep"] is None and "beyond drift.refit_growth = 0.25" in facts["reason"]


def test_flipped_labels_refit_for_their_auc(runs):
    """Golden and synthetic texts of every other added prompt are swapped."""
    other = Testbed(WORLD).sources[1]
    swap = {"human": other, other: "human"}
    rows = [row | {"sources": [swap.get(s, s) if i % 2 else s for s in row["sources"]]} for i, row in enumerate(added(1))]
    facts = runs.drift("swapped", runs.rows + rows)
    assert facts["decision"] == "refit" and rules_of(facts, "auc_drop")[other]["verdict"] == "refit"
    assert f"AUC of {other}" in facts["reason"] and "refit_auc_drop = 0.05" in facts["reason"]
    off = {f"refit_{name}": None for name in ("growth", "auc_drop", "h_shift", "length_shift")}
    assert runs.drift("tolerant", runs.rows + rows, DriftConfig(**off))["decision"] == "reuse"
    refused = runs.drift("strict", runs.rows + rows, DriftConfig(refit_growth=None, refuse_auc_drop=0.05))
    assert refused["decision"] == "refuse" and f"look at the new rows of {other}" in refused["stop"]["hint"]


def test_a_new_style_of_a_source_refits_and_a_wholly_other_length_is_refused(runs):
    other = Testbed(WORLD).sources[1]
    styled = added(1, shift=3.0)
    facts = runs.drift("styled", runs.rows + styled)
    assert facts["decision"] == "refit" and rules_of(facts, "h_shift")[other]["verdict"] == "refit"
    assert rules_of(facts, "h_shift")["human"]["verdict"] == "ok"

    long = [
        row | {"responses": [y * 9 if s == other else y for y, s in zip(row["responses"], row["sources"], strict=True)]} for row in styled
    ]
    facts = runs.drift("long", runs.rows + long)
    assert facts["decision"] == "refuse" and facts["keep"] is None
    assert f"lengths of {other} moved by" in facts["stop"]["message"] and "refuse_length_shift = 0.8" in facts["stop"]["message"]
    assert "raise drift.refuse_length_shift to" in facts["stop"]["hint"]


def test_other_shares_refit_and_a_mixture_turned_over_is_refused(runs):
    facts = runs.drift("more human", added(1, alpha=0.8))
    assert facts["decision"] == "refit" and "most of all human from" in facts["reason"]
    other = Testbed(WORLD).sources[1]
    rows = [row | {"sources": [other if i else "human" for i, _ in enumerate(row["sources"])]} for row in added(2)]
    relabelled = [row | {"sources": [f"{s}-2" if s != "human" else s for s in row["sources"]]} for row in rows]
    facts = runs.drift("turned over", relabelled, DriftConfig(refuse_share_shift=0.5))
    assert facts["decision"] == "refuse" and "beyond drift.refuse_share_shift = 0.5" in facts["stop"]["message"]
    assert (
        facts["stop"]["hint"].startswith("look at the new rows of all sources")
        and "raise drift.refuse_share_shift to 0.5" in facts["stop"]["hint"]
    )


def test_few_new_rows_are_not_judged(runs):
    facts = runs.drift("few", runs.rows + added(1, 10))
    assert facts["decision"] == "reuse" and "too few of any source to judge its AUC" in facts["reason"]
    for name in ("auc_drop", "h_shift", "length_shift"):
        assert all(
            one["verdict"] == "not judged" and f"{JUDGEABLE} of each are needed" in one["message"] for one in rules_of(facts, name).values()
        )


# -------------------------------------------------------------------------------------------- what cannot serve, and policy


def test_what_the_old_classifier_cannot_serve_is_fitted_and_never_says_so(runs):
    rows = runs.rows + [row | {"sources": ["newcomer" if s != "human" else s for s in row["sources"]]} for row in added(1, 40)]
    facts = runs.drift("newcomer", rows)
    assert facts["decision"] == "fit" and facts["reason"] == "the earlier classifier has no head for newcomer"
    assert rules_of(facts, "auc_drop")[None]["verdict"] == "not judged" and rules_of(facts, "share_shift")[None]["value"] > 0
    with pytest.raises(DataError, match="refit is never, but the earlier classifier has no head for newcomer"):
        runs.drift("newcomer never", rows, refit="never")


@pytest.mark.parametrize(
    ("changes", "decision", "reason"),
    [
        ({"refit": "always"}, "refit", "classifier.refit is always"),
        ({"refit": "never"}, "reuse", "classifier.refit is never"),
        ({"learning_rate": 0.01}, "fit", "classifier.learning_rate changed from 0.001 to 0.01"),
    ],
)
def test_policy_and_settings(runs, changes, decision, reason):
    facts = runs.drift("policy", runs.rows + added(1, 10, shift=4.0), **changes)
    assert (facts["decision"], facts["reason"]) == (decision, reason)
    assert (facts["keep"] is None) == (decision != "reuse")


def test_a_classifier_that_is_gone_is_fitted_again(runs):
    shutil.rmtree(runs.store.local_root / "classify" / runs.first.classify.digest)
    facts = runs.drift("gone", runs.rows + added(1, 10))
    assert (facts["decision"], facts["reason"]) == ("fit", "the last run's classify are no longer in the store")


def test_the_last_run_is_a_hint_and_no_input(runs):
    one, _, _ = runs.specs("same", runs.first.records, GROWS, None)
    other, _, _ = runs.specs("same", runs.first.records, GROWS, runs.first)
    assert one.digest() == other.digest() and "previous" not in other.payload() and other.inputs().keys() == {"records"}


# ---------------------------------------------------------------------------------------------------------- end to end


def test_classify_and_calibrate_follow(runs):
    """Reuse: no classifier is fitted and only new rows are scored; drift: a new one; a third run finds the kept one behind the second."""
    drifted, fit, factors = runs.specs("week 2", runs.rows + added(1, 60), GROWS, runs.first)
    found = execute(drifted, drift.run, runs.store)["facts"]
    kept = execute(fit, classify.run, runs.store)["facts"]
    assert kept["reused"] and kept["classifier"] == runs.first.classify.model_dump() and kept["reason"] == found["reason"]
    assert not (runs.store.local_root / "classify" / fit.digest() / "classifier").exists()
    scored = execute(factors, calibrate.run, runs.store)["facts"]
    new = sum(source["responses"]["new"] for source in found["sources"].values())
    assert scored["scored_rows"] == new > 0

    second = drift.Previous(records=drifted.records, classify=fit.ref(), calibrate=factors.ref())
    drifted, fit, _ = runs.specs("week 3", runs.rows + added(1, 60) + added(4, 150), GROWS, second)
    assert execute(drifted, drift.run, runs.store)["facts"]["keep"] == runs.first.classify.model_dump()

    drifted, fit, _ = runs.specs("week 4", runs.rows + added(5, 200, round=2, drift=1.0), GROWS, second)
    assert execute(drifted, drift.run, runs.store)["facts"]["decision"] == "refit"
    refitted = execute(fit, classify.run, runs.store)["facts"]
    assert not refitted["reused"] and refitted["classifier"] == fit.ref().model_dump() and "drift.refit_" in refitted["reason"]


def test_classify_fits_where_the_classifier_to_keep_is_gone(runs):
    drifted, fit, _ = runs.specs("week 2", runs.rows + added(1, 10), GROWS, runs.first)
    assert execute(drifted, drift.run, runs.store)["facts"]["keep"]
    shutil.rmtree(runs.store.local_root / "classify" / runs.first.classify.digest)
    facts = execute(fit, classify.run, runs.store)["facts"]
    assert not facts["reused"] and "is no longer in the store" in facts["reason"]

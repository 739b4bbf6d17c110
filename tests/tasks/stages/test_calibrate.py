"""Stage calibrate: h against exact ratios, what is scored, edge cases, and real actors."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dora_core.config.execution import Execution
from dora_core.data.records import fold_of
from dora_core.errors import DataError
from dora_core.testbed.mixture import Testbed, TestbedConfig
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages import calibrate, classify, drift
from tests.tasks.classified import CONFIG, WORLD, calibrate_spec, classify_spec, drift_spec, ingested, table_of, true_ratios
from tests.tasks.conftest import GOLDEN
from tests.tasks.stages.conftest import Fitted


@pytest.fixture
def store(fitted: Fitted, tmp_path: Path) -> Store:
    """A copy of ``fitted``'s."""
    return Store(str(shutil.copytree(fitted.root, tmp_path / "store")))


def test_h_follows_the_exact_ratio(store, fitted):
    """1,000 responses, no golden reference beside the mixture."""
    rows, records, classifier = fitted.rows, fitted.records, fitted.classifier
    spec = calibrate_spec(records, classifier, cap_quantile=None)
    facts = execute(spec, calibrate.run, store)["facts"]
    table = table_of(store, spec)
    h = table["h"].to_numpy()
    assert np.corrcoef(h, true_ratios(Testbed(WORLD), rows, table))[0, 1] > 0.75  # measured .84
    assert h.mean() == pytest.approx(1.0) and facts["nan"] == 0 and facts["tau"] == 1.0
    assert facts["h"]["human"]["mean"] > 1.0
    assert sum(map(sum, facts["histogram"]["counts"].values())) == len(table)


def test_trained_classifiers_order_the_forms_as_exact_densities_do(store, tmp_path):
    """The default bias, 400 prompts and a golden reference of 750: correlation of raw h with the truth, measured .95 for two seeds."""
    config = TestbedConfig(prompts=400, seed=100)
    testbed, rows = Testbed(config), Testbed(config).generate()
    records = ingested(store, tmp_path / "default", rows, testbed.generate_golden(750))
    fit = classify_spec(records, epochs=1.0)
    execute(fit, classify.run, store)
    correlation, error = {}, {}
    for form in ("mixture", "paper", "released"):
        spec = calibrate_spec(records, fit.ref(), form=form, normalize=False, cap_quantile=None)
        execute(spec, calibrate.run, store)
        table = table_of(store, spec)
        true, h = true_ratios(testbed, rows, table), table["h"].to_numpy()
        correlation[form], error[form] = np.corrcoef(h, true)[0, 1], np.abs(h - true).mean()
    print({form: f"correlation {correlation[form]:.3f}, mean |h − truth| {error[form]:.3f}" for form in correlation})
    assert correlation["mixture"] > 0.85
    assert error["mixture"] < 0.5 * min(error["paper"], error["released"])


def test_the_ratio_given_the_prompt_is_right_where_sources_answer_different_topics(store, tmp_path):
    """Prompts alone tell sources apart; correlation of log h with the exact p_golden(y|x)/P(y|x)."""
    config = TestbedConfig(prompts=600, sources=2, alpha=0.3, prompt_shift=1.0, seed=100)
    testbed, rows = Testbed(config), Testbed(config).generate()
    records = ingested(store, tmp_path / "topics", rows, testbed.generate_golden(800))
    fit = classify_spec(records, epochs=0.1)
    heads = execute(fit, classify.run, store)["facts"]["sources"]
    assert all(head["prompt_slope"] > 0.5 and head["prompt_only_auc"] > 0.7 for head in heads.values())
    correlation = {}
    for ratio in ("joint", "conditional"):
        spec = calibrate_spec(records, fit.ref(), ratio=ratio, normalize=False, cap_quantile=None)
        facts = execute(spec, calibrate.run, store)["facts"]
        table = table_of(store, spec)
        assert facts["ratio"] == ratio and ("golden_prompt" in table.column_names) == (ratio == "conditional")
        correlation[ratio] = np.corrcoef(np.log(table["h"].to_numpy()), np.log(true_ratios(testbed, rows, table)))[0, 1]
    print(correlation)
    assert correlation["conditional"] > 0.9 and correlation["joint"] < correlation["conditional"] - 0.05


def test_table_has_every_training_response_once_in_order(store, fitted):
    spec = calibrate_spec(fitted.records, fitted.classifier)
    execute(spec, calibrate.run, store)
    table = table_of(store, spec)
    records = pq.read_table(store.fetch("ingest", fitted.records.digest) / "records.parquet", filters=[("split", "=", "train")]).to_pylist()
    expected = [(r["record_id"], i, s) for r in records for i, s in enumerate(r["sources"])]
    assert list(zip(*(table[c].to_pylist() for c in ("record_id", "response_index", "source")), strict=True)) == expected
    folds = fold_of(np.array([r["prompt_hash"] for r in records for _ in r["sources"]], dtype=np.uint64), CONFIG.folds)
    assert table["fold"].to_pylist() == folds.tolist()
    heads = [s for s in Testbed(WORLD).sources if s not in GOLDEN]
    ratios = [f"{x}_{s}" for x in ("c", "w", "prompt") for s in sorted(heads)]
    assert table.column_names == ["record_id", "response_index", "source", "fold", *ratios, "golden_prompt", "h", "schema_version"]
    facts = store.read_result("calibrate", spec.digest())["facts"]
    for name in heads:
        c, gamma = table[f"c_{name}"].to_numpy(), store.read_result("classify", fitted.classifier.digest)["facts"]["sources"][name]["gamma"]
        np.testing.assert_allclose(table[f"w_{name}"].to_numpy(), gamma * c / (1 - c), rtol=1e-12)
        assert facts["shares"][name] == sum(s == name for _, _, s in expected) / len(expected)
    assert facts["ess_by_form"].keys() == {"mixture", "paper", "released"}


def test_weighting_by_h_brings_text_statistics_to_golden_ones_and_enforcing_further(store, fitted):
    """Golden text is shorter and repeats less here; h comes from a classifier of 1,000 responses, so it closes most of the gap."""
    found = {}
    for balance in ("report", "enforce"):
        spec = calibrate_spec(fitted.records, fitted.classifier, balance=balance, cap_quantile=None)
        result = execute(spec, calibrate.run, store)
        found[balance] = calibrate.Facts.model_validate(result["facts"])
        h = table_of(store, spec)["h"].to_numpy()
        assert h.mean() == pytest.approx(1.0) and result["metrics"]["smd_max"] == found[balance].balance.worst
    report, enforced = found["report"].balance, found["enforce"].balance
    assert report.ridge is None and enforced.ridge is not None
    assert report.worst_before == enforced.worst_before > 0.15
    assert enforced.worst < report.worst < report.worst_before
    assert found["enforce"].ess >= 0.8 * found["report"].ess - 1e-6
    assert report.responses == sum(one.n for one in found["report"].h.values()) and report.golden == found["report"].h["human"].n


def test_other_settings_of_h_score_nothing(store, fitted):
    first = execute(calibrate_spec(fitted.records, fitted.classifier), calibrate.run, store)["facts"]
    again = execute(calibrate_spec(fitted.records, fitted.classifier, form="paper", temper="auto", ess_floor=0.9), calibrate.run, store)[
        "facts"
    ]
    assert first["scored_rows"] > 0 and (again["scored_rows"], again["reused_rows"]) == (0, first["scored_rows"] + first["reused_rows"])
    assert again["ess"] >= 0.9 - 1e-6


def test_more_data_keeps_the_classifier_and_scores_only_what_is_new(store, fitted, tmp_path):
    rows, records, classifier = fitted.rows, fitted.records, fitted.classifier
    before = calibrate_spec(records, classifier, normalize=False, cap_quantile=None)
    execute(before, calibrate.run, store)
    more = ingested(store, tmp_path / "more", rows)
    drifted = drift_spec(more, drift.Previous(records=records, classify=classifier, calibrate=before.ref()))
    execute(drifted, drift.run, store)
    kept = classify_spec(more, drifted.ref())
    facts = execute(kept, classify.run, store)["facts"]
    assert facts["reused"] and facts["classifier"] == classifier.model_dump() and "too few" in facts["reason"]
    assert not (store.local_root / "classify" / kept.digest() / "classifier").exists()

    after = calibrate_spec(more, kept.ref(), normalize=False, cap_quantile=None)
    result = execute(after, calibrate.run, store)
    old, new = table_of(store, before), table_of(store, after)
    assert result["facts"]["scored_rows"] == len(new) - len(old) > 0
    assert result["facts"]["reused_rows"] == len(old)
    old_rows = {(r["record_id"], r["response_index"]): r for r in old.to_pylist()}
    heads = [name for name in old.column_names if name.startswith("c_")]
    shared = [(old_rows[k], r) for r in new.to_pylist() if (k := (r["record_id"], r["response_index"])) in old_rows]
    assert len(shared) == len(old) and all(a[name] == b[name] for a, b in shared for name in heads)


def test_a_damaged_score_part_is_scored_again(store, fitted, caplog):
    execute(calibrate_spec(fitted.records, fitted.classifier), calibrate.run, store)
    (part,) = (store.local_root / "scores" / fitted.classifier.digest).glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-100] + b"x" * 100)
    with caplog.at_level(logging.WARNING):
        facts = execute(calibrate_spec(fitted.records, fitted.classifier, form="paper"), calibrate.run, store)["facts"]
    assert facts["reused_rows"] == 0 and "damaged" in caplog.text


def test_a_source_without_shift_gets_ratio_one_and_data_without_shift_needs_no_calibration(store, tmp_path):
    """Two sources that are golden in truth; a third, of capitals, is not."""
    rows = Testbed(WORLD.model_copy(update={"shift": 0.0})).generate()
    records = ingested(store, tmp_path / "same", rows)
    fit = classify_spec(records)
    assert not any(s["told_apart"] for s in execute(fit, classify.run, store)["facts"]["sources"].values())
    spec = calibrate_spec(records, fit.ref())
    facts = execute(spec, calibrate.run, store)["facts"]
    assert facts["no_shift"] is True and facts["warnings"][-1] == "no source can be told from golden: this data needs no calibration"
    assert (table_of(store, spec)["h"].to_numpy() == 1.0).all() and facts["ess"] == 1.0
    for form in ("paper", "released"):
        other = calibrate_spec(records, fit.ref(), form=form)
        execute(other, calibrate.run, store)
        assert (table_of(store, other)["h"].to_numpy() == 1.0).all()

    for row in rows:
        drawn = zip(row["responses"], row["sources"], strict=True)
        row["sources"] = ["loud" if s == "human" and i % 2 else s for i, (_, s) in enumerate(drawn)]
        row["responses"] = [y.upper() if s == "loud" else y for y, s in zip(row["responses"], row["sources"], strict=True)]
    records = ingested(store, tmp_path / "loud", rows)
    fit = classify_spec(records)
    execute(fit, classify.run, store)
    spec = calibrate_spec(records, fit.ref())
    facts = execute(spec, calibrate.run, store)["facts"]
    table = table_of(store, spec)
    same = [s for s in Testbed(WORLD).sources if s not in GOLDEN]
    assert facts["no_shift"] is False and [w.split(" cannot")[0] for w in facts["warnings"] if "cannot be told" in w] == sorted(same)
    for name in same:
        np.testing.assert_allclose(table[f"w_{name}"].to_numpy(), 1.0, rtol=1e-12)
    assert facts["h"]["loud"]["quantiles"]["0.95"] < 0.2 < 1.0 < facts["h"]["human"]["mean"]


def test_without_source_labels_h_follows_the_exact_ratio(store, tmp_path):
    config = TestbedConfig(prompts=400, alpha=0.25, unlabelled=1.0, seed=100)
    testbed, rows = Testbed(config), Testbed(config).generate()
    records = ingested(store, tmp_path / "nameless", rows, testbed.generate_golden(600))
    fit = classify_spec(records, epochs=1.0)
    fitted = execute(fit, classify.run, store)["facts"]
    assert fitted["sources"].keys() == {"unlabelled"}
    share = fitted["unlabelled"]
    spec = calibrate_spec(records, fit.ref(), normalize=False, cap_quantile=None)
    facts = execute(spec, calibrate.run, store)["facts"]
    table = table_of(store, spec)
    assert facts["alpha"] == share | {"estimated": True} and facts["shares"] == {"golden": 0.0, "unlabelled": 1.0}
    true, h = true_ratios(testbed, rows, table), table["h"].to_numpy()
    assert np.corrcoef(h, true)[0, 1] > 0.8
    assert h.max() <= 1 / share["value"] * (1 + 1e-9)
    # What is identified is the largest share: 1 / max(p_golden/P), here .41, not .25.
    assert share["value"] == pytest.approx(1 / true.max(), abs=0.15) and share["value"] >= config.alpha
    assert set(facts["ess_by_form"]) == {"mixture"} and set(facts["h"]) == {"(unknown)"} and set(table["source"].to_pylist()) == {None}
    with pytest.raises(DataError, match="needs every response's source"):
        execute(calibrate_spec(records, fit.ref(), form="released"), calibrate.run, store)
    with pytest.raises(DataError, match="divides by the share of labelled golden"):
        execute(calibrate_spec(records, fit.ref(), form="paper"), calibrate.run, store)


def test_half_of_the_records_without_labels(store, tmp_path):
    config = TestbedConfig(prompts=400, alpha=0.25, unlabelled=0.5, seed=101)
    testbed, rows = Testbed(config), Testbed(config).generate()
    records = ingested(store, tmp_path / "mixed", rows, testbed.generate_golden(600))
    fit = classify_spec(records, epochs=1.0)
    execute(fit, classify.run, store)
    spec = calibrate_spec(records, fit.ref(), normalize=False, cap_quantile=None)
    facts = execute(spec, calibrate.run, store)["facts"]
    table, shares = table_of(store, spec), facts["shares"]
    assert np.corrcoef(table["h"].to_numpy(), true_ratios(testbed, rows, table))[0, 1] > 0.85
    assert sum(shares.values()) == pytest.approx(1.0) and 0.4 < shares["unlabelled"] < 0.6
    w = {name: table[f"w_{name}"].to_numpy() for name in shares if name != "golden"}
    expected = 1 / (shares["golden"] + sum(shares[name] / ratio for name, ratio in w.items()))
    np.testing.assert_allclose(table["h"].to_numpy(), expected, rtol=1e-12)
    assert facts["alpha"]["estimated"] and facts["alpha"]["low"] <= facts["alpha"]["value"] <= facts["alpha"]["high"]
    assert set(facts["ess_by_form"]) == {"mixture", "paper"}


def test_labelled_responses_alone_know_their_golden_share(store, fitted):
    facts = execute(calibrate_spec(fitted.records, fitted.classifier), calibrate.run, store)["facts"]
    alpha = facts["shares"]["golden"]
    assert facts["alpha"] == {"value": alpha, "low": alpha, "high": alpha, "estimated": False} and facts["no_shift"] is False


@pytest.mark.component
def test_on_ray_the_table_is_the_same(ray_cluster, store, fitted, tmp_path):
    rows = fitted.rows
    execution = Execution(workers=2, cpus_per_worker=1, shard_rows=100)
    records = ingested(store, tmp_path / "few", rows[:120])
    fit = classify_spec(records, execution=execution, epochs=1.0)
    spec = calibrate_spec(records, fit.ref(), execution=execution)
    execute(fit, classify.run, store)
    execute(spec, calibrate.run, store)
    alone = Store(str(tmp_path / "alone"))
    ingested(alone, tmp_path / "few", rows[:120])
    execute(classify_spec(records, epochs=1.0), classify.run, alone)
    execute(calibrate_spec(records, fit.ref(), execution=Execution(workers=0, shard_rows=100)), calibrate.run, alone)
    ours, theirs = table_of(store, spec), table_of(alone, spec)
    assert ours.select(["record_id", "response_index", "source", "fold"]) == theirs.select(
        ["record_id", "response_index", "source", "fold"]
    )
    np.testing.assert_allclose(ours["h"].to_numpy(), theirs["h"].to_numpy(), rtol=1e-3)

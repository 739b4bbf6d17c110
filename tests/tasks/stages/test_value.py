"""Stage value on known mixtures whose sources differ in how their labels were made."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dora_core.config.valuation import ExchangeConfig, TrustConfig
from dora_core.errors import DataError
from dora_core.testbed.mixture import Testbed, TestbedConfig
from infra.store.store import Store
from tasks.runtime.spec import StageRef
from tasks.runtime.stage import execute
from tasks.stages import calibrate, value
from tests.tasks.classified import calibrate_spec, ingested
from tests.tasks.conftest import GOLDEN
from tests.tasks.facts import assert_round_trip
from tests.tasks.stages.conftest import Fitted

REVERSED = {"human": 0.0, "verbose-lm": 0.0, "sycophant-lm": 0.4, "repeater-lm": 1.0}
SMALL: dict[str, Any] = {"buckets": 64, "bootstrap_samples": 200}


def spec_of(
    records: StageRef, *, calibration: StageRef | None = None, trust: TrustConfig | None = None, enabled: bool = True, **settings: Any
) -> value.Spec:
    exchange = ExchangeConfig(enabled=enabled, **SMALL | settings)
    return value.Spec(records=records, calibration=calibration, trust=trust or TrustConfig(), exchange=exchange, golden_sources=GOLDEN)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, StageRef]:
    """All responses are as good as people's; labels of each source are reversed with the probability :data:`REVERSED`."""
    folder = tmp_path_factory.mktemp("sources")
    rows = Testbed(TestbedConfig(prompts=500, sources=3, alpha=0.4, shift=0.0, one_source_per_record=True)).generate()
    rng = np.random.default_rng(0)
    for row in rows:
        if rng.random() < REVERSED[row["sources"][0]]:
            row["rewards"] = [-reward for reward in row["rewards"]]
    store = Store(str(folder / "store"))
    return store, ingested(store, folder / "data", rows)


@pytest.fixture(scope="module")
def valued(sources: tuple[Store, StageRef]) -> tuple[Store, value.Spec, value.Facts]:
    store, records = sources
    spec = spec_of(records)
    return store, spec, value.Facts.model_validate(execute(spec, value.run, store)["facts"])


def test_agreement_is_that_of_the_labels(valued: tuple[Store, value.Spec, value.Facts]) -> None:
    found = valued[2].sources
    for name, share in REVERSED.items():
        if name != "human":
            agreement = found[name].agreement
            assert agreement is not None and found[name].method == "reward_model"
            assert agreement.low - 0.05 <= 1 - share <= agreement.high + 0.05 and agreement.value == pytest.approx(1 - share, abs=0.12)


def test_rates_are_ordered_as_the_truth_and_a_harmful_source_gets_none(valued: tuple[Store, value.Spec, value.Facts]) -> None:
    found = valued[2].sources
    rates = {name: source.rate.value for name, source in found.items() if source.rate is not None}
    assert rates["verbose-lm"] > rates["sycophant-lm"] >= rates["repeater-lm"] == 0
    assert found["repeater-lm"].verdict == "drop" and found["verbose-lm"].verdict == "use"
    assert found["verbose-lm"].worth == pytest.approx(rates["verbose-lm"] * found["verbose-lm"].n)


def test_every_train_record_has_its_probability(valued: tuple[Store, value.Spec, value.Facts]) -> None:
    store, spec, _ = valued
    table = pq.read_table(store.fetch("value", spec.digest()) / "label_trust.parquet")
    records = pq.read_table(store.fetch("ingest", spec.records.digest) / "records.parquet", filters=[("split", "=", "train")])
    assert table["record_id"].to_pylist() == records["record_id"].to_pylist()
    by_source: dict[str, list[float]] = {}
    for name, q in zip(table["label_source"].to_pylist(), table["label_probability"].to_pylist(), strict=True):
        by_source.setdefault(name, []).append(q)
    assert set(by_source["golden"]) == {1.0}
    means = {name: np.mean(q) for name, q in by_source.items()}
    assert means["verbose-lm"] > 0.85 > means["sycophant-lm"] > 0.4 > 0.1 > means["repeater-lm"]


def test_the_result_has_a_headline_and_metrics(valued: tuple[Store, value.Spec, value.Facts]) -> None:
    store, spec, facts = valued
    content = store.read_result("value", spec.digest())
    assert content is not None
    assert_round_trip(content)
    result = value.STAGE.parse(content)
    assert "verbose-lm 1.00" in value.headline(result) and "(use)" in value.headline(result)
    assert (
        result.metrics["best_loss"] <= result.metrics["golden_alone_loss"]
        and result.metrics["best_loss"] < result.metrics["all_alike_loss"]
    )
    assert result.metrics["exchange_rate_repeater-lm"] == 0.0 and facts.fits > 15


def test_factors_and_quality_of_the_classifiers_are_read(fitted: Fitted, tmp_path: Path) -> None:
    store = Store(str(shutil.copytree(fitted.root, tmp_path / "store")))
    calibration = calibrate_spec(fitted.records, fitted.classifier)
    execute(calibration, calibrate.run, store)
    facts = value.Facts.model_validate(execute(spec_of(fitted.records, calibration=calibration.ref()), value.run, store)["facts"])
    assert set(facts.losses) == {"none", "h", "trust", "h·trust"}
    named = {name: source for name, source in facts.sources.items() if name.endswith("-lm")}
    assert named and all(source.auc is not None and source.mean_h is not None for source in named.values())


def test_labels_of_both_are_compared_directly(tmp_path: Path) -> None:
    """Every record of people is also labelled by a judge, named in a carried column, who reverses each fourth."""
    testbed = Testbed(TestbedConfig(prompts=160, responses_per_prompt=2, shift=0.0, one_source_per_record=True))
    rows = testbed.generate()
    people = [row | {"sources": ["lm"] * 2, "labeller": "human"} for row in rows]
    judged = [
        row | {"id": f"j{i}", "sources": ["lm"] * 2, "labeller": "judge-1", "rewards": row["rewards"][:: -1 if i % 4 == 0 else 1]}
        for i, row in enumerate(rows)
    ]
    store = Store(str(tmp_path / "store"))
    records = ingested(store, tmp_path / "data", people + judged, testbed.generate_golden(10), carry=["labeller"])
    spec = spec_of(records, trust=TrustConfig(labeller="labeller"), enabled=False)
    facts = value.Facts.model_validate(execute(spec, value.run, store)["facts"])
    (name,) = facts.sources
    found = facts.sources[name]
    assert (name, found.method, found.overlap) == ("judge-1", "overlap", found.n) and found.rate is None
    assert found.agreement is not None and found.agreement.value == pytest.approx(0.75, abs=0.04)
    table = pq.read_table(store.fetch("value", spec.digest()) / "label_trust.parquet").to_pylist()
    right = {row["record_id"]: row["label_probability"] for row in table if row["label_source"] == "judge-1"}
    assert right == {record: float(int(record[1:]) % 4 != 0) for record in right}


def test_without_golden_labels_sources_are_compared_with_each_other(sources: tuple[Store, StageRef]) -> None:
    store, records = sources
    spec = value.Spec(
        records=records, calibration=None, trust=TrustConfig(), exchange=ExchangeConfig(enabled=True, **SMALL), golden_sources=["nobody"]
    )
    facts = value.Facts.model_validate(execute(spec, value.run, store)["facts"])
    assert {source.method for source in facts.sources.values()} == {"em"} and facts.golden_labels == 0
    assert all(source.rate is None for source in facts.sources.values())
    assert "a bias that sources share counts as agreement" in facts.warnings[0] and "at least 20" in facts.warnings[1]


def test_what_is_refused(sources: tuple[Store, StageRef], tmp_path: Path) -> None:
    store, records = sources
    spec = spec_of(records, trust=TrustConfig(method="reward_model"))
    with pytest.raises(DataError, match="learns from golden labels, and there are 0 golden-labelled prompts"):
        execute(spec.model_copy(update={"golden_sources": ["nobody"]}), value.run, store)
    rows = [row | {"rewards": [1.0] * 4} for row in Testbed(TestbedConfig(prompts=20)).generate()]
    ties = ingested(store, tmp_path / "ties", rows)
    with pytest.raises(DataError, match="no training record has a strict preference"):
        execute(spec_of(ties), value.run, store)

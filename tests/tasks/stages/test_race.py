"""Stage race on known mixtures: its choice, its tables, and what alignment makes of them."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dora_core.config.valuation import ExchangeConfig, RaceConfig, TrustConfig
from dora_core.errors import DataError
from infra.store.store import Store
from tasks.runtime.spec import StageRef
from tasks.runtime.stage import execute
from tasks.stages import calibrate, race, value
from tests.tasks.classified import calibrate_spec
from tests.tasks.conftest import GOLDEN
from tests.tasks.facts import assert_round_trip
from tests.tasks.stages.conftest import Fitted

EXCHANGE = ExchangeConfig(enabled=False, buckets=64)


def raced(store: Store, records: StageRef, calibration: StageRef, golden: list[str] = GOLDEN, **settings: Any) -> race.Spec:
    valuation = value.Spec(records=records, calibration=calibration, trust=TrustConfig(), exchange=EXCHANGE, golden_sources=golden)
    execute(valuation, value.run, store)
    return race.Spec(
        records=records,
        calibration=calibration,
        value=valuation.ref(),
        race=RaceConfig(**settings),
        trust=TrustConfig(),
        exchange=EXCHANGE,
        golden_sources=golden,
    )


@pytest.fixture(scope="module")
def run(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, race.Spec, race.Facts]:
    store = Store(str(shutil.copytree(fitted.root, tmp_path_factory.mktemp("race") / "store")))
    calibration = calibrate_spec(fitted.records, fitted.classifier)
    execute(calibration, calibrate.run, store)
    spec = raced(store, fitted.records, calibration.ref(), objectives=["dora"])
    result = execute(spec, race.run, store)
    assert_round_trip(result)
    return store, spec, race.Facts.model_validate(result["facts"])


def test_every_entrant_has_its_standing_and_the_lowest_loss_is_first(run: tuple[Store, race.Spec, race.Facts]) -> None:
    rows = run[2].standings
    assert {"golden_only", "erm", "reweight", "dora @ 0.9", "erm + trust"} <= {row.name for row in rows}
    assert [row.loss for row in rows] == sorted(row.loss for row in rows)
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    best = next(row for row in rows if row.error is None)
    assert best.excess == 0 and all(row.excess == pytest.approx(row.loss - best.loss) for row in rows)


def test_weights_are_one_number_per_record_of_mean_one(run: tuple[Store, race.Spec, race.Facts]) -> None:
    store, spec, facts = run
    table = pq.read_table(store.fetch("race", spec.digest()) / "calibration.parquet")
    records = pq.read_table(store.fetch("ingest", spec.records.digest) / "records.parquet", filters=[("split", "=", "train")])
    expected = [
        (record, i)
        for record, r in zip(*records.select(["record_id", "responses"]).to_pydict().values(), strict=True)
        for i in range(len(r))
    ]
    assert list(zip(table["record_id"].to_pylist(), table["response_index"].to_pylist(), strict=True)) == expected
    by_record: dict[str, set[float]] = {}
    for record, h in zip(table["record_id"].to_pylist(), table["h"].to_pylist(), strict=True):
        by_record.setdefault(record, set()).add(h)
    assert all(len(values) == 1 for values in by_record.values())
    assert np.mean([values.pop() for values in by_record.values()]) == pytest.approx(1.0)
    assert facts.mean_weight["golden"] == 1.0


def test_label_probabilities_are_one_per_record_and_one_for_people(run: tuple[Store, race.Spec, race.Facts]) -> None:
    store, spec, _ = run
    table = pq.read_table(store.fetch("race", spec.digest()) / "label_trust.parquet").to_pylist()
    assert all(row["label_probability"] == 1.0 for row in table if row["label_source"] == "golden")
    assert all(0 <= row["label_probability"] <= 1 for row in table)


def test_the_headline_is_the_reason(run: tuple[Store, race.Spec, race.Facts]) -> None:
    store, spec, facts = run
    content = store.read_result("race", spec.digest())
    assert content is not None
    assert race.headline(race.STAGE.parse(content)) == facts.reason
    assert content["metrics"]["loss_erm"] == next(row.loss for row in facts.standings if row.name == "erm")


def test_few_golden_labels_are_refused_with_the_line_to_write(run: tuple[Store, race.Spec, race.Facts]) -> None:
    store, spec, _ = run
    nobody = raced(store, spec.records, spec.calibration, golden=["nobody"])
    with pytest.raises(DataError, match="0 prompts have golden labels; at least 10") as caught:
        execute(nobody, race.run, store)
    assert "align.objective.name: dora" in (caught.value.hint or "")


def test_finalists_have_tables_of_their_own_and_the_choice_is_one_of_them(run: tuple[Store, race.Spec, race.Facts]) -> None:
    store, spec, facts = run
    trained = spec.evolve(race=spec.race.evolve(by="training"))
    assert trained.digest() != spec.digest()
    found = race.Facts.model_validate(execute(trained, race.run, store)["facts"])
    assert set(found.finalists) == {"choice", "other", "golden_only", "erm"} and facts.finalists == {}
    folder = store.fetch("race", trained.digest())

    def weights(name: str) -> np.ndarray:
        return pq.read_table(folder / name / "calibration.parquet")["h"].to_numpy()

    np.testing.assert_array_equal(weights("finalists/choice"), weights("."))
    assert np.ptp(weights("finalists/erm")) == 0, "every record alike"
    assert found.finalists["golden_only"].mean_weight["golden"] == 1.0
    assert {weight for name, weight in found.finalists["golden_only"].mean_weight.items() if name != "golden"} <= {0.0}
    labels = pq.read_table(folder / "finalists/erm" / "label_trust.parquet")["label_probability"]
    assert {*labels.to_pylist()} == {1.0}, "erm does not soften labels"

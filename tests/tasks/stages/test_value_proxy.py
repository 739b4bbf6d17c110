"""What ``value`` hands to ``race``: exact, written for a race only, and enough for the same result."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from dora_core.config.valuation import ExchangeConfig, RaceConfig, TrustConfig
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages import _value_proxy, calibrate, race, value
from tests.tasks.classified import calibrate_spec
from tests.tasks.conftest import GOLDEN
from tests.tasks.stages.conftest import Fitted

EXCHANGE = ExchangeConfig(buckets=32)


@pytest.fixture(scope="module")
def valued(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, value.Spec]:
    store = Store(str(shutil.copytree(fitted.root, tmp_path_factory.mktemp("proxy") / "store")))
    calibration = calibrate_spec(fitted.records, fitted.classifier)
    execute(calibration, calibrate.run, store)
    settings = {"trust": TrustConfig(), "exchange": EXCHANGE, "golden_sources": GOLDEN}
    spec = value.Spec(records=fitted.records, calibration=calibration.ref(), **settings, shares=True)
    execute(spec, value.run, store)
    return store, spec


def test_writing_for_a_race_is_no_part_of_the_digest(valued: tuple[Store, value.Spec]) -> None:
    _, spec = valued
    assert spec.evolve(shares=False).digest() == spec.digest()


def test_the_table_has_the_very_numbers(valued: tuple[Store, value.Spec]) -> None:
    store, spec = valued
    read = _value_proxy.read_proxy(store.fetch("value", spec.digest()))
    records = store.fetch("ingest", spec.records.digest) / "records.parquet"
    factors = store.fetch("calibrate", spec.calibration.digest) / "calibration.parquet"  # type: ignore[union-attr]
    labels = _value_proxy.read_mixture(records, factors, spec.aggregate, spec.golden_sources, spec.trust, spec.exchange)
    made = _value_proxy.compute_proxy(records, labels, spec.trust, spec.exchange, []).proxy
    assert read is not None and (read.labels.names, read.labels.ids) == (labels.names, labels.ids)
    for found, expected in ((read.labels, made.labels), (read.pairs, made.pairs), (read, made)):
        for name, column in vars(expected).items():
            if isinstance(column, np.ndarray):
                np.testing.assert_array_equal(getattr(found, name), column, err_msg=name)
                assert getattr(found, name).dtype == column.dtype, name
    assert made.label_P is not None and made.held_out_KP is not None, "the world has golden labels"


def test_a_race_is_the_same_with_the_table_and_without(valued: tuple[Store, value.Spec], monkeypatch: pytest.MonkeyPatch) -> None:
    store, spec = valued
    assert spec.calibration is not None
    fields = {"records": spec.records, "calibration": spec.calibration, "value": spec.ref(), "trust": spec.trust, "exchange": spec.exchange}
    raced = race.Spec(**fields, race=RaceConfig(objectives=[]), golden_sources=GOLDEN)
    with monkeypatch.context() as patched:
        patched.setattr(race, "compute_proxy", lambda *_: pytest.fail("computed again"))
        shared = execute(raced, race.run, store)
    other = race.Spec(**fields, race=RaceConfig(objectives=[], seed=1), golden_sources=GOLDEN)  # another digest, the same losses
    monkeypatch.setattr(race, "read_proxy", lambda folder: None)
    alone = execute(other, race.run, store)
    losses = [{row["name"]: row["loss"] for row in result["facts"]["standings"]} for result in (shared, alone)]
    assert losses[0] == losses[1] and len(losses[0]) > 5

"""A small known mixture with fitted classifiers, computed once for the tests of the stages that read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from dora_core.testbed.mixture import Testbed
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages import classify
from tests.tasks.classified import WORLD, classify_spec, ingested


@dataclass(frozen=True)
class Fitted:
    """``rows`` of :data:`WORLD`, of which the first 280 are ingested and fitted. Copy the store at ``root`` before writing to it."""

    root: Path
    rows: list[dict]
    records: StageRef
    classifier: StageRef


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    folder = tmp_path_factory.mktemp("fitted")
    store, rows = Store(str(folder / "store")), Testbed(WORLD).generate()
    records = ingested(store, folder / "data", rows[:280])
    fit = classify_spec(records)
    execute(fit, classify.run, store)
    return Fitted(store.local_root, rows, records, fit.ref())

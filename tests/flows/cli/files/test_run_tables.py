"""Records and factors of a finished run, found by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dora_core.errors import ConfigError
from flows.cli.files.run_tables import tables_of_run
from flows.report.find import ReportError
from infra.store.store import Store
from tasks.tables.artifacts import CALIBRATION_FILE, RECORDS_FILE

DIGESTS = {"ingest": "a" * 64, "calibrate": "b" * 64}
FILES = {"ingest": RECORDS_FILE, "calibrate": CALIBRATION_FILE}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    for stage, digest in DIGESTS.items():
        folder = store.folder(stage, digest)
        (folder.path / FILES[stage]).write_bytes(b"table")
        store.mark_done(folder, {"digest": digest})
    return store


def write_run(store: Store, states: dict[str, str], config: dict[str, Any] | None = None) -> None:
    stages = [{"stage": name, "label": name, "digest": DIGESTS[name], "state": state} for name, state in states.items()]
    run = {"run_id": "demo-1", "project": "demo", "flow_run_id": "f", "status": "completed", "started": 1.0, "config": config or {}}
    store.write_json("runs/demo-1/run.json", run | {"stages": stages})


def test_records_and_factors_of_a_run(store: Store) -> None:
    write_run(store, {"ingest": "ran", "calibrate": "cached"}, {"calibration": {"aggregate": "sum"}})
    tables = tables_of_run(store, "latest")
    assert (tables.name, tables.aggregate) == ("demo-1", "sum")
    assert tables.factors is not None and tables.factors.name == CALIBRATION_FILE
    assert tables.records == store.local_root / "ingest" / DIGESTS["ingest"] / RECORDS_FILE


@pytest.mark.parametrize("states", [{"ingest": "ran"}, {"ingest": "ran", "calibrate": "failed"}])
def test_a_run_without_factors(store: Store, states: dict[str, str]) -> None:
    write_run(store, states)
    tables = tables_of_run(store, "demo")
    assert tables.factors is None and tables.aggregate == "mean"


@pytest.mark.parametrize("states", [{}, {"ingest": "failed"}])
def test_a_run_without_records_is_refused(store: Store, states: dict[str, str]) -> None:
    write_run(store, states)
    with pytest.raises(ConfigError, match="demo-1 has no records: it did not get that far") as caught:
        tables_of_run(store, "demo-1")
    assert "dora data export -c FILE" in caught.value.hint


def test_an_unknown_run_is_refused(store: Store) -> None:
    with pytest.raises(ReportError, match="there are no runs"):
        tables_of_run(store, "latest")

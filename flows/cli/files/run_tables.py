"""Records and calibration factors of a finished run, as files: for the preview and the export."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from dora_core.errors import ConfigError
from flows.report.find import find_run, manifest_of
from infra.store.store import Store
from tasks.tables.artifacts import CALIBRATION_FILE, RECORDS_FILE
from tasks.tables.training_records import Aggregate


class Tables(NamedTuple):
    """Files to export.

    Attributes:
        name: of the run or the project, for messages.
        factors: None where nothing is calibrated.
    """

    name: str
    records: Path
    factors: Path | None
    aggregate: Aggregate


def tables_of_run(store: Store, query: str) -> Tables:
    """Records and factors of a run.

    Raises:
        ReportError: no such run. ConfigError: its records are not there.
    """
    run_id = find_run(store, query)
    run = manifest_of(store, run_id)
    digests = {entry.stage: entry.digest for entry in reversed(run.stages) if entry.stage in ("ingest", "calibrate") and entry.is_finished}
    if "ingest" not in digests:
        raise ConfigError(f"{run_id} has no records: it did not get that far", hint="name another run, or: dora data export -c FILE")
    factors = store.fetch("calibrate", digests["calibrate"]) / CALIBRATION_FILE if "calibrate" in digests else None
    aggregate: Aggregate = run.config.get("calibration", {}).get("aggregate", "mean")
    return Tables(run_id, store.fetch("ingest", digests["ingest"]) / RECORDS_FILE, factors, aggregate)

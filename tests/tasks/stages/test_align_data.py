"""The file of training records that ``align`` writes once: reused by the next attempt, fetched by other machines."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from dora_core.config.alignment import AlignConfig
from dora_core.errors import DataError
from dora_core.training.alignment_data import AlignmentData
from infra.store.journal import JournalWriter
from infra.store.store import Store, sha256_file
from tasks.runtime.stage import StageContext, StageRef
from tasks.stages import align
from tests.tasks.conftest import IN_PROCESS, TEXT, TINY


@pytest.fixture
def spec(pipeline_start: tuple[Path, StageRef, StageRef, StageRef]) -> align.Spec:
    _, records, sft, reference = pipeline_start
    loss = AlignConfig(loss={"name": "dpo_pl"})
    return align.Spec(
        records=records,
        calibration=None,
        reference=reference,
        start=sft,
        model=TINY,
        text=TEXT,
        align=loss,
        execution=IN_PROCESS,
    )


def context_of(store: Store, spec: align.Spec) -> StageContext:
    folder = store.folder(spec.stage, spec.digest())
    return StageContext(store, folder, JournalWriter(folder), logging.getLogger("test"))


@pytest.fixture
def context(pipeline_start, spec: align.Spec, tmp_path: Path) -> StageContext:
    shutil.copytree(pipeline_start[0], tmp_path / "store")
    return context_of(Store(str(tmp_path / "store")), spec)


def test_the_next_attempt_reuses_a_whole_file_and_rewrites_a_damaged_one(spec, context, monkeypatch):
    place = align.training_data(spec, context)
    file = context.store.local_root / place
    whole, written = file.read_bytes(), file.stat().st_mtime_ns
    assert align.training_data(spec, context) == place and file.stat().st_mtime_ns == written
    file.write_bytes(whole[:-8])
    assert align.training_data(spec, context) == place and file.read_bytes() == whole
    monkeypatch.setattr("dora_core.training.alignment_data.FORMAT", 0)
    assert align.training_data(spec, context) == place and file.stat().st_mtime_ns != written, "of another layout: written again"


def test_a_worker_on_another_machine_fetches_the_file(spec, context, tmp_path):
    """Two local roots over one bucket; the driver's machine and the worker's share nothing else."""
    bucket = pafs.SubTreeFileSystem(str(tmp_path / "store"), pafs.LocalFileSystem())
    place = align.training_data(spec, context)
    elsewhere = Store(str(tmp_path / "elsewhere"))
    elsewhere.remote = (bucket, "")
    path = align.local_file(elsewhere, place)
    assert path.is_relative_to(tmp_path / "elsewhere")
    ours, theirs = AlignmentData(context.store.local_root / place), AlignmentData(path)
    assert [ours[i] for i in range(len(ours))] == [theirs[i] for i in range(len(theirs))]


def test_a_reference_of_other_records_is_refused(spec, context):
    import pyarrow.parquet as pq

    logps = context.fetch(spec.reference) / "logps.parquet"
    table = pq.read_table(logps)
    pq.write_table(table.slice(1), logps)
    result = context.store.read_result("reference", spec.reference.digest)
    result["files"]["logps.parquet"] = {"bytes": logps.stat().st_size, "sha256": sha256_file(logps)}
    context.store.write_json(f"reference/{spec.reference.digest}/result.json", result)
    first = table["record_id"][0].as_py()
    with pytest.raises(DataError, match=f"logps.parquet row 0 does not go with the records: .* where {first} response 0 is expected"):
        align.training_data(spec, context)
    assert not list(context.scratch.glob("*.arrow"))

"""The training data of ``align``: computed once for all that train on it, fetched by other machines, refused where its tables differ."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from dora_core.config.alignment import AlignConfig
from dora_core.errors import DataError, StoreError
from dora_core.training.alignment_data import FORMAT, AlignmentData
from infra.store.store import Store, sha256_file
from tasks.runtime.stage import StageRef, execute
from tasks.stages import align, training_data
from tasks.tables.artifacts import RECORDS_FILE, TRAINING_DATA_FILE, TRUST_FILE
from tasks.tables.record_selection import RecordSelection
from tasks.tables.rows import record_batches
from tests.tasks.conftest import align_spec, prepare
from tests.tasks.handmade import finished

Start = tuple[Path, StageRef, StageRef, StageRef]
LISTWISE, PAIRWISE = AlignConfig(loss={"name": "dpo_pl"}), AlignConfig(loss={"name": "dpo"})


@pytest.fixture
def store(pipeline_start: Start, tmp_path: Path) -> Store:
    shutil.copytree(pipeline_start[0], tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "training_data")
    return Store(str(tmp_path / "store"))


def data_of(pipeline: Start, config: AlignConfig, **changes: object) -> training_data.Spec:
    data = align_spec(pipeline, config).model_copy(update=changes).preparation()["data"]
    assert isinstance(data, training_data.Spec)
    return data


def changed(config: AlignConfig, **sections: dict[str, object]) -> AlignConfig:
    return AlignConfig.model_validate(config.model_dump(by_alias=True) | sections)


def test_settings_of_training_alone_do_not_tokenise_again(pipeline_start: Start) -> None:
    digest = data_of(pipeline_start, LISTWISE).digest()
    for other in (
        changed(LISTWISE, objective={"name": "dora", "lambda": 2.0}),
        changed(LISTWISE, optimization={"learning_rate": 1e-5, "epochs": 3.0}),
        changed(LISTWISE, loss={"name": "lire"}),
    ):
        assert align_spec(pipeline_start, other).digest() != align_spec(pipeline_start, LISTWISE).digest()
        assert data_of(pipeline_start, other).digest() == digest
    assert data_of(pipeline_start, PAIRWISE).digest() == data_of(pipeline_start, changed(PAIRWISE, loss={"name": "simpo"})).digest()


def test_what_the_file_depends_on_is_in_its_digest(pipeline_start: Start) -> None:
    spec = align_spec(pipeline_start, LISTWISE)
    other = StageRef(stage="calibrate", digest="0" * 64)
    changes = [
        {"records": other},
        {"calibration": other},
        {"reference": other},
        {"start": None},
        {"aggregate": "min"},
        {"model": spec.model.model_copy(update={"vocab_size": 501})},
        {"text": spec.text.model_copy(update={"max_prompt_tokens": 40})},
        {"align": LISTWISE.model_copy(update={"max_responses": 3})},
        {"align": PAIRWISE},
    ]
    digests = {data_of(pipeline_start, LISTWISE, **change).digest() for change in changes}
    assert len(digests | {data_of(pipeline_start, LISTWISE).digest()}) == 1 + len(changes)
    assert training_data.Spec.version == FORMAT, "another layout is another digest"


def test_part_of_the_records_is_another_file_and_all_of_them_the_one_before(pipeline_start: Start, store: Store) -> None:
    """Of three responses each, a record is golden with probability 1/64: the tiny mixture has none; those of other sources it has."""
    whole = data_of(pipeline_start, LISTWISE)
    assert "selection" not in whole.payload() and "selection" not in align_spec(pipeline_start, LISTWISE).payload()
    synthetic = data_of(pipeline_start, LISTWISE, selection=RecordSelection(records="synthetic", golden_sources=["human"]))
    assert synthetic.digest() != whole.digest()
    for spec in (whole, synthetic):
        execute(spec, training_data.run, store)
    all_of_them, part = (AlignmentData(store.fetch(s.stage, s.digest()) / TRAINING_DATA_FILE) for s in (whole, synthetic))
    human = {i for i, name in enumerate(all_of_them.sources) if name == "human"}
    expected = [all_of_them[i] for i in range(len(all_of_them)) if not human & {*all_of_them[i].sources}]
    assert [part[i].row for i in range(len(part))] == [record.row for record in expected] and len(expected) > 10
    assert "human" not in part.sources

    none = data_of(pipeline_start, LISTWISE, selection=RecordSelection(records="golden", golden_sources=["nobody"]))
    with pytest.raises(DataError, match=r"none of the \d+ training records is golden"):
        execute(none, training_data.run, store)


def test_it_is_a_predecessor_of_align_and_no_input(pipeline_start: Start) -> None:
    spec = align_spec(pipeline_start, LISTWISE)
    data = data_of(pipeline_start, LISTWISE)
    assert spec.predecessors() == spec.inputs() | {"data": data.ref()} and "data" not in spec.inputs()
    assert data.digest() not in str(spec.payload())
    assert data.execution.workers == 0 and data.execution.gpus_per_worker == 0


def test_it_is_computed_once_and_align_says_where_it_is_missing(pipeline_start: Start, store: Store) -> None:
    spec = align_spec(pipeline_start, LISTWISE)
    data = data_of(pipeline_start, LISTWISE)
    with pytest.raises(StoreError, match=f"training_data/{data.digest()[:12]} has no result.json"):
        execute(spec, align.run, store)
    prepare(spec, store)
    file = store.local_root / "training_data" / data.digest() / TRAINING_DATA_FILE
    whole, written = file.read_bytes(), file.stat().st_mtime_ns
    prepare(spec, store)
    assert file.stat().st_mtime_ns == written
    file.write_bytes(whole[:-8])
    prepare(spec, store)
    assert file.read_bytes() == whole, "a damaged one is written again"
    assert execute(spec, align.run, store)["inputs"].keys() == {"records", "reference", "start"}


def test_its_metrics_are_those_of_the_file(pipeline_start: Start, store: Store) -> None:
    data = prepare(align_spec(pipeline_start, LISTWISE), store)
    result = store.read_result("training_data", data.digest())
    assert result is not None
    records = AlignmentData(store.fetch("training_data", data.digest()) / TRAINING_DATA_FILE)
    assert result["rows"] == result["metrics"]["records"] == len(records) > 10
    assert result["metrics"]["tokens"] == records.tokens.sum()
    assert training_data.headline(training_data.STAGE.parse(result)) == f"{len(records)} records, {records.tokens.sum():,} tokens"


def test_a_worker_on_another_machine_fetches_the_file(pipeline_start: Start, store: Store, tmp_path: Path) -> None:
    """Two local roots over one bucket; the driver's machine and the worker's share nothing else."""
    data = prepare(align_spec(pipeline_start, LISTWISE), store)
    elsewhere = Store(str(tmp_path / "elsewhere"))
    elsewhere.remote = (pafs.SubTreeFileSystem(str(tmp_path / "store"), pafs.LocalFileSystem()), "")
    path = elsewhere.fetch("training_data", data.digest()) / TRAINING_DATA_FILE
    assert path.is_relative_to(tmp_path / "elsewhere")
    ours, theirs = (AlignmentData(store.fetch("training_data", data.digest()) / TRAINING_DATA_FILE), AlignmentData(path))
    assert [ours[i] for i in range(len(ours))] == [theirs[i] for i in range(len(theirs))]


def test_a_reference_of_other_records_is_refused(pipeline_start: Start, store: Store) -> None:
    import pyarrow.parquet as pq

    spec = align_spec(pipeline_start, LISTWISE)
    logps = store.fetch("reference", spec.reference.digest) / "logps.parquet"
    table = pq.read_table(logps)
    pq.write_table(table.slice(1), logps)
    result = store.read_result("reference", spec.reference.digest)
    assert result is not None
    result["files"]["logps.parquet"] = {"bytes": logps.stat().st_size, "sha256": sha256_file(logps)}
    store.write_json(f"reference/{spec.reference.digest}/result.json", result)
    first = table["record_id"][0].as_py()
    with pytest.raises(DataError, match=f"logps.parquet row 0 does not go with the records: .* where {first} response 0 is expected"):
        prepare(spec, store)
    assert not list(store.local_root.glob("training_data/*/*.arrow"))


def test_probabilities_of_labels_reach_the_training(pipeline_start: Start, store: Store) -> None:
    """Half of the records are sure, the others have .75: as soft labels, and as weights of mean 1."""
    ids = [
        batch["record_id"]
        for batch in record_batches(store.fetch("ingest", pipeline_start[1].digest) / RECORDS_FILE, ["record_id"], "train")
    ]
    names = [name for column in ids for name in column.to_pylist()]
    probability = [0.75 if i % 2 else 1.0 for i in range(len(names))]
    table = pa.table({"record_id": names, "label_source": ["bot"] * len(names), "label_probability": probability})
    trust = finished(store, "value", "trust", {TRUST_FILE: table})
    for use in ("soft_label", "weight"):
        spec = data_of(pipeline_start, PAIRWISE, trust=trust, trust_use=use)
        execute(spec, training_data.run, store)
        data = AlignmentData(store.fetch("training_data", spec.digest()) / TRAINING_DATA_FILE)
        expected = [probability[data[i].row] for i in range(len(data))]
        if use == "soft_label":
            assert [data[i].label_probability for i in range(len(data))] == expected and data.uncertain == expected.count(0.75) > 0
            assert {data[i].factor for i in range(len(data))} == {1.0}
        else:
            mean = sum(probability) / len(probability)
            assert [data[i].factor for i in range(len(data))] == pytest.approx([q / mean for q in expected]) and not data.uncertain

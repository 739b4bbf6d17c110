"""The streaming join against plain dictionaries, and its refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.data.records import RECORDS_SCHEMA
from dora_core.errors import DataError
from dora_core.training.alignment_data import JOINED_COLUMNS
from tasks.tables import rows
from tasks.tables import training_records as join
from tasks.tables.training_records import count_unpaired, joined_records


def make_records(n: int) -> list[dict]:
    """Lists of 2 to 4; rewards have gaps and ties; every fourth record is for evaluation."""
    rng, records = np.random.default_rng(0), []
    for i in range(n):
        size = 2 + i % 3
        rewards = [None if (i + j) % 5 == 0 else float(rng.integers(0, 3)) for j in range(size)]
        record = {"record_id": f"r{i}", "prompt": [{"role": "user", "content": f"q{i}"}], "responses": [f"y{i}.{j}" for j in range(size)]}
        record |= {"rewards": rewards, "sources": ["human", None, "a-lm", "human"][:size], "reward_kind": "reward"}
        records.append(record | {"split": "eval" if i % 4 == 1 else "train", "prompt_hash": i, "schema_version": 1})
    return records


@pytest.fixture
def tables(tmp_path: Path) -> tuple[list[dict], dict[tuple[str, int], float], dict[tuple[str, int], float]]:
    """records, logp and h by response, written as the stages write them."""
    records, rng = make_records(50), np.random.default_rng(1)
    logps = {(r["record_id"], j): -rng.exponential() for r in records for j in range(len(r["responses"]))}
    train = {r["record_id"] for r in records if r["split"] == "train"}
    factors = {key: rng.gamma(2.0) for key in logps if key[0] in train}
    pq.write_table(pa.Table.from_pylist(records, schema=RECORDS_SCHEMA), tmp_path / "records.parquet", row_group_size=9)
    write(tmp_path / "logps.parquet", logps, "logp")
    write(tmp_path / "calibration.parquet", factors, "h")
    return records, logps, factors


def write(path: Path, values: dict[tuple[str, int], float], column: str) -> None:
    columns = {"record_id": [k[0] for k in values], "response_index": pa.array([k[1] for k in values], pa.int32())}
    pq.write_table(pa.table(columns | {column: list(values.values())}), path, row_group_size=11)


def joined(folder: Path, aggregate: str = "mean", factors: bool = True) -> list[dict]:
    stream = joined_records(
        folder / "records.parquet", folder / "logps.parquet", folder / "calibration.parquet" if factors else None, aggregate
    )
    return [row for table in stream for row in table.to_pylist()]


@pytest.mark.parametrize("aggregate", ["mean", "min", "chosen", "product"])
@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_every_training_record_meets_its_own_numbers(tables, tmp_path, monkeypatch, aggregate, batch):
    monkeypatch.setattr(rows, "BATCH_RECORDS", batch)
    monkeypatch.setattr(join, "READ_ROWS", 3 * batch)
    records, logps, factors = tables
    train = [r for r in records if r["split"] == "train"]
    found = joined(tmp_path, aggregate)
    assert [r["record_id"] for r in found] == [r["record_id"] for r in train]
    for row, (got, record) in enumerate(zip(found, train, strict=True)):
        assert set(JOINED_COLUMNS) <= set(got) and got["row"] == row
        assert all(got[name] == record[name] for name in ("prompt", "responses", "rewards", "sources"))
        n, name = len(record["responses"]), record["record_id"]
        h = [factors[name, j] for j in range(n)]
        best = max(range(n), key=lambda j, r=record["rewards"]: -np.inf if r[j] is None else r[j])
        expected = {"mean": np.mean(h), "min": min(h), "product": np.prod(h), "chosen": h[best]}[aggregate]
        assert got["logps"] == [logps[name, j] for j in range(n)]
        assert got["factor"] == pytest.approx(expected, rel=1e-14)


def test_without_factors_every_record_counts_one(tables, tmp_path):
    assert {r["factor"] for r in joined(tmp_path, factors=False)} == {1.0}


def test_no_more_than_a_batch_of_records_is_joined_at_once(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "BATCH_RECORDS", 4)
    stream = joined_records(tmp_path / "records.parquet", tmp_path / "logps.parquet", tmp_path / "calibration.parquet", "mean")
    assert [len(table) for table in stream][:3] == [3, 3, 3], "of four records one is for evaluation"


def test_a_foreign_table_is_refused_with_the_first_row_that_differs(tables, tmp_path):
    _, logps, _ = tables
    names = list(logps)
    write(tmp_path / "logps.parquet", {("other", 7) if key == names[12] else key: v for key, v in logps.items()}, "logp")
    expected = rf"logps.parquet row 12 .*: other response 7 where {names[12][0]} response {names[12][1]} is expected"
    with pytest.raises(DataError, match=expected) as error:
        joined(tmp_path)
    assert "delete" in error.value.hint


def test_a_table_that_is_too_short_or_too_long_is_refused(tables, tmp_path):
    _, logps, factors = tables
    last = list(logps)[-1]
    write(tmp_path / "logps.parquet", {key: v for key, v in logps.items() if key != last}, "logp")
    with pytest.raises(DataError, match=f"row {len(logps) - 1} .*nothing where {last[0]} response {last[1]}"):
        joined(tmp_path)
    write(tmp_path / "logps.parquet", logps, "logp")
    write(tmp_path / "calibration.parquet", factors | {("more", 0): 1.0}, "h")
    with pytest.raises(DataError, match="more rows than the records have responses"):
        joined(tmp_path)


@pytest.mark.parametrize("aggregate", ["mean", "min", "chosen", "product"])
def test_h_of_an_unpaired_record_is_that_of_its_response(tables, tmp_path, aggregate):
    records, logps, factors = tables
    for record in records[::3]:
        record |= {name: record[name][:1] for name in ("responses", "sources")} | {"rewards": [0.0], "reward_kind": "label"}
    kept = {(r["record_id"], j) for r in records for j in range(len(r["responses"]))}
    pq.write_table(pa.Table.from_pylist(records, schema=RECORDS_SCHEMA), tmp_path / "records.parquet")
    write(tmp_path / "logps.parquet", {key: v for key, v in logps.items() if key in kept}, "logp")
    write(tmp_path / "calibration.parquet", {key: v for key, v in factors.items() if key in kept}, "h")
    unpaired = [r for r in joined(tmp_path, aggregate) if r["reward_kind"] == "label"]
    assert [r["factor"] for r in unpaired] == pytest.approx([factors[r["record_id"], 0] for r in unpaired], rel=1e-14)
    assert [r["logps"] for r in unpaired] == [[logps[r["record_id"], 0]] for r in unpaired]
    assert count_unpaired(tmp_path / "records.parquet", "train") == (len(unpaired), sum(r["split"] == "train" for r in records))


def test_label_probabilities_stay_with_their_records_and_old_tables_have_none(tables, tmp_path):
    records, _, _ = tables
    for number, record in enumerate(records):
        record["label_probability"] = None if number % 3 else number / 50
    pq.write_table(pa.Table.from_pylist(records, schema=RECORDS_SCHEMA), tmp_path / "records.parquet")
    expected = [r["label_probability"] for r in records if r["split"] == "train"]
    assert [r["label_probability"] for r in joined(tmp_path)] == expected
    before = RECORDS_SCHEMA.remove(RECORDS_SCHEMA.get_field_index("label_probability"))
    pq.write_table(pa.Table.from_pylist(records, schema=before), tmp_path / "records.parquet")
    assert {r["label_probability"] for r in joined(tmp_path)} == {None}


def write_trust(folder: Path, values: dict[str, float | None]) -> Path:
    columns = {"record_id": list(values), "label_probability": pa.array(list(values.values()), pa.float64())}
    pq.write_table(pa.table(columns), folder / "label_trust.parquet", row_group_size=7)
    return folder / "label_trust.parquet"


def with_trust(folder: Path, use: join.TrustUse, values: dict[str, float | None]) -> list[dict]:
    records, logps, factors = (folder / f"{name}.parquet" for name in ("records", "logps", "calibration"))
    stream = joined_records(records, logps, factors, "mean", write_trust(folder, values), use)
    return [row for table in stream for row in table.to_pylist()]


def test_estimated_probabilities_stand_where_the_data_has_none(tables, tmp_path):
    records = tables[0]
    for i, record in enumerate(records):
        record["label_probability"] = 0.9 if i % 3 == 0 else None
    pq.write_table(pa.Table.from_pylist(records, schema=RECORDS_SCHEMA), tmp_path / "records.parquet")
    train = [r["record_id"] for r in records if r["split"] == "train"]
    found = with_trust(tmp_path, "soft_label", {name: None if name == train[1] else 0.25 for name in train})
    given = {r["record_id"]: r["label_probability"] for r in records}
    expected = [given[name] if given[name] is not None else None if name == train[1] else 0.25 for name in train]
    assert [row["label_probability"] for row in found] == expected
    assert [row["factor"] for row in found] == [row["factor"] for row in joined(tmp_path)], "h stays"


def test_a_weight_multiplies_h_and_keeps_its_mean(tables, tmp_path):
    train = [r["record_id"] for r in tables[0] if r["split"] == "train"]
    # Probabilities .2 and .6 in turn, and one unknown: with an even number of known ones their mean is .4, so weights are ½, 1½ and 1.
    values = {name: None if i == 0 else 0.2 if i % 2 else 0.6 for i, name in enumerate(train)}
    known = [q for q in values.values() if q is not None]
    found = with_trust(tmp_path, "weight", values)
    for row, before in zip(found, joined(tmp_path), strict=True):
        q = values[row["record_id"]]
        assert row["factor"] == pytest.approx(before["factor"] * (1.0 if q is None else q / np.mean(known)))
        assert row["label_probability"] is None


def test_trust_of_other_records_is_refused(tables, tmp_path):
    train = [r["record_id"] for r in tables[0] if r["split"] == "train"]
    with pytest.raises(DataError, match=rf"label_trust.parquet row 2 does not go with the records: other where {train[2]} is expected"):
        with_trust(tmp_path, "weight", {name if i != 2 else "other": 0.5 for i, name in enumerate(train)})
    with pytest.raises(DataError, match="more rows than the records"):
        with_trust(tmp_path, "weight", {name: 0.5 for name in [*train, "r999"]})

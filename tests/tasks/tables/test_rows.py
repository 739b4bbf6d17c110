"""Responses as rows: the same as reading everything, whatever the row groups, and no more than the wanted ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.data.encoding import plain_prompt
from dora_core.data.records import GOLDEN_SCHEMA, RECORDS_SCHEMA
from dora_core.data.response_turns import join_turns
from tasks.tables import rows as rows_module
from tasks.tables.artifacts import GOLDEN_FILE, RECORDS_FILE
from tasks.tables.rows import read_index, rebatch, record_batches, responses_of, row_keys, text_rows, texts_at


def message(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def make_records(n: int) -> list[dict]:
    """Lists of 2 to 4 responses; every third record is for evaluation, every fourth prompt a conversation; sources may be missing."""
    records = []
    for i in range(n):
        size = 2 + i % 3
        prompt = [message(f"Frage {i} ü?")] + ([{"role": "assistant", "content": "hm"}, message("and?")] if i % 4 == 0 else [])
        records.append(
            {
                "record_id": f"r{i}",
                "prompt": prompt,
                "responses": [f"answer {i}.{j} é" for j in range(size)],
                "rewards": [float(j) for j in range(size)],
                "sources": [["human", "a-lm", None][(i + j) % 3] for j in range(size)],
                "reward_kind": "reward",
                "split": "eval" if i % 3 == 0 else "train",
                "prompt_hash": (2**64 - 1) // (i + 1),
                "schema_version": 1,
            }
        )
    return records


def flat(records: list[dict], split: str | None) -> list[dict]:
    """What the streams must agree with, by plain loops."""
    return [
        {"record": r, "i": i, "response": y, "source": r["sources"][i], "text": plain_prompt(r["prompt"])}
        for r in records
        if split in (None, r["split"])
        for i, y in enumerate(r["responses"])
    ]


@pytest.fixture(params=[1, 7, 1000], ids=lambda n: f"row groups of {n}")
def written(request, tmp_path: Path) -> tuple[Path, list[dict]]:
    records = make_records(40)
    path = tmp_path / RECORDS_FILE
    pq.write_table(pa.Table.from_pylist(records, schema=RECORDS_SCHEMA), path, row_group_size=request.param)
    return path, records


@pytest.mark.parametrize("split", [None, "train", "eval"])
def test_the_index_is_that_of_plain_loops(written, split):
    path, records = written
    index, expected = read_index(path, split), flat(records, split)
    assert [index.names[s] if s >= 0 else None for s in index.source_N] == [r["source"] for r in expected]
    assert index.prompt_hash_N.tolist() == [r["record"]["prompt_hash"] for r in expected]
    for key, row in zip(index.key_N.tolist(), expected, strict=True):
        digest = hashlib.sha256(row["record"]["prompt_hash"].to_bytes(8, "big") + row["response"].encode()).digest()
        assert key == int.from_bytes(digest[:8], "big")


@pytest.mark.parametrize("split", [None, "train"])
@pytest.mark.parametrize("wanted", [[0], [3, 4, 5, 29, 60], "all", []])
def test_texts_of_positions(written, split, wanted):
    path, records = written
    expected = flat(records, split)
    positions = np.arange(len(expected)) if wanted == "all" else np.array(wanted, dtype=np.int64)
    found = [row for table in text_rows(path, positions, split, plain=True) for row in table.to_pylist()]
    assert [r["position"] for r in found] == positions.tolist()
    assert [(r["prompt"], r["response"]) for r in found] == [(expected[p]["text"], expected[p]["response"]) for p in positions]
    messages = [row["prompt"] for table in text_rows(path, positions, split, plain=False) for row in table.to_pylist()]
    assert messages == [expected[p]["record"]["prompt"] for p in positions]


def test_texts_come_in_the_order_asked_for(written):
    path, records = written
    expected = flat(records, "train")
    positions = np.array([41, 3, 17, 0])
    prompts, responses = texts_at(path, positions, "train")
    assert prompts == [expected[p]["text"] for p in positions] and responses == [expected[p]["response"] for p in positions]


def test_golden_rows_are_rows_too(tmp_path: Path):
    golden = [
        {
            "record_id": f"g{i}",
            "prompt": [message(f"q{i}")],
            "response": f"a{i}",
            "prompt_hash": i,
            "split": "eval" if i % 5 == 0 else "train",
        }
        for i in range(12)
    ]
    path = tmp_path / GOLDEN_FILE
    pq.write_table(pa.Table.from_pylist(golden, schema=GOLDEN_SCHEMA), path, row_group_size=5)
    index = read_index(path, "train")
    assert index.prompt_hash_N.tolist() == [i for i in range(12) if i % 5] and set(index.source_N.tolist()) == {-1}
    assert texts_at(path, np.array([8, 0]), "train") == (["q11", "q1"], ["a11", "a1"])


def test_a_row_group_without_a_wanted_row_is_not_read(tmp_path: Path, monkeypatch):
    path = tmp_path / RECORDS_FILE
    pq.write_table(pa.Table.from_pylist(make_records(40), schema=RECORDS_SCHEMA), path, row_group_size=10)
    read = []

    def watched(file, columns, split=None, row_groups=None):
        if "responses" in columns:
            read.append(row_groups)
        return record_batches(file, columns, split, row_groups)

    monkeypatch.setattr(rows_module, "record_batches", watched)
    total = len(flat(make_records(40), None))
    assert sum(len(t) for t in text_rows(path, np.array([0, 1, total - 1]), plain=True)) == 3
    assert read == [[0], [3]]


def test_no_more_than_a_batch_of_records_is_materialised(tmp_path: Path, monkeypatch):
    """The bound that makes memory flat: however many records there are, tables hold at most BATCH_RECORDS of them."""
    path = tmp_path / RECORDS_FILE
    pq.write_table(pa.Table.from_pylist(make_records(40), schema=RECORDS_SCHEMA), path)
    monkeypatch.setattr(rows_module, "BATCH_RECORDS", 6)
    assert [len(batch) for batch in record_batches(path, ["record_id"])] == [6] * 6 + [4]
    positions = np.arange(len(flat(make_records(40), None)))
    assert max(len(table) for table in text_rows(path, positions, plain=True)) <= 6 * 4


def test_responses_of_a_slice_belong_to_their_records():
    table = pa.Table.from_pylist(make_records(10), schema=RECORDS_SCHEMA).slice(3, 4)
    rows = responses_of(table.select(["record_id", "responses", "sources"])).to_pylist()
    assert [(r["record_id"], r["response_index"], r["response"], r["source"]) for r in rows] == [
        (r["record"]["record_id"], r["i"], r["response"], r["source"]) for r in flat(make_records(10)[3:7], None)
    ]


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_rebatching_keeps_every_row(rows):
    whole = pa.table({"x": list(range(10))})
    tables = [whole.slice(a, b - a) for a, b in ((0, 2), (2, 2), (2, 9), (9, 10))]
    cut = list(rebatch(tables, rows))
    assert [x for table in cut for x in table["x"].to_pylist()] == list(range(10))
    assert all(len(table) == rows for table in cut[:-1]) and 0 < len(cut[-1]) <= rows
    varied = list(rebatch(tables, iter([3, 1, rows])))
    assert pa.concat_tables(varied).equals(pa.concat_tables(tables)) and [len(table) for table in varied][:2] == [3, 1]
    assert [len(table) for table in rebatch([tables[1]], rows)] == [0] and list(rebatch([], rows)) == []


def test_a_goal_is_part_of_a_row_s_identity() -> None:
    """The prompt's hash leaves the goal out; without a goal the key is that of earlier releases."""
    hashes, texts = np.array([7, 7, 7], dtype=np.uint64), pa.array(["y", "y", "y"])
    goals = pa.array([None, "Aim at 1.", "Aim at 2."])
    plain, *asked = row_keys(hashes, texts, goals).tolist()
    assert plain == row_keys(hashes, texts)[0] and len({plain, *asked}) == 3


def test_a_response_of_several_turns_is_a_transcript_for_classifiers_and_whole_for_policies(tmp_path: Path):
    response = join_turns([{"role": role, "content": role} for role in ("assistant", "user", "assistant")])
    records = make_records(4)
    records[1]["responses"][1] = response
    path = tmp_path / RECORDS_FILE
    pq.write_table(pa.Table.from_pylist(records, schema=RECORDS_SCHEMA), path)
    texts = {
        plain: [y for table in text_rows(path, np.arange(8), plain=plain) for y in table["response"].to_pylist()] for plain in (True, False)
    }
    assert texts[False][3] == response and texts[True][3] == "assistant\n\nUser: user\n\nAssistant: assistant"
    assert texts[True][:3] == texts[False][:3]

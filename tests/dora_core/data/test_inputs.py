"""Inputs on disk in every accepted format, and what a user sees when one is not as expected."""

from __future__ import annotations

import gzip
import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.config.method import DataConfig, DataSource
from dora_core.data.inputs import changed_sources, fingerprint_sources, inputs_of, open_input
from dora_core.data.records import Problem, Reason
from dora_core.errors import DataError

ROWS = [{"id": str(i), "prompt": f"p{i}", "responses": ["x", "y"], "rewards": [1.0, 0.0], "sources": ["human", "m"]} for i in range(5)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def read(path, place="data.train[0]", batch_rows=2, **source):
    files = open_input(DataSource(path=str(path), **source), place, {})
    return [row for file in files for row in file.rows(batch_rows)]


def refused(path, place="data.train[0]", **source) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path, place, **source)
    return caught.value


# ------------------------------------------------------------------------------------------------------- formats


def test_parquet_jsonl_and_saved_datasets_give_the_same_rows(tmp_path):
    import datasets

    saved = tmp_path / "saved"
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}).save_to_disk(saved)
    compressed = tmp_path / "a.jsonl.gz"
    compressed.write_bytes(gzip.compress(write_jsonl(tmp_path / "a.jsonl", ROWS).read_bytes()))
    expected = [(i, row | {"ranks": None, "task": None}) for i, row in enumerate(ROWS)]
    for path in (tmp_path / "a.jsonl", compressed):
        assert read(path) == expected
    for path in (write_parquet(tmp_path / "a.parquet", ROWS), saved):
        assert read(path) == list(enumerate(ROWS))
    assert read(saved, split="test") == [(0, ROWS[0])]
    assert "no split 'tset'" in refused(saved, split="tset").message


def test_folder_is_read_in_order_of_names_and_skips_hidden_files(tmp_path):
    (tmp_path / "sub").mkdir()
    write_jsonl(tmp_path / "b.jsonl", ROWS[1:2])
    write_parquet(tmp_path / "a.parquet", ROWS[:1])
    write_jsonl(tmp_path / "sub" / "c.jsonl", ROWS[2:3])
    write_jsonl(tmp_path / "_metadata.jsonl", ROWS[3:])
    assert [row["id"] for _, row in read(tmp_path)] == ["0", "1", "2"]
    assert [row["id"] for _, row in read(tmp_path, format="jsonl")] == ["1", "2"]


def test_file_uri_is_read_like_a_path(tmp_path):
    assert len(read(write_parquet(tmp_path / "a.parquet", ROWS).as_uri())) == 5


def test_batch_size_does_not_change_rows(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    assert read(path, batch_rows=1) == read(path, batch_rows=100)


def test_columns_are_mapped_and_named_back(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"q": "hi", "good": "x", "bad": "y", "kind": "math", "extra": 1}])
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad", "task": "kind"}
    (file,) = open_input(DataSource(path=str(path), columns=columns, source="m"), "data.train[0]", {})
    assert (file.form, list(file.rows())) == ("pairwise", [(0, {"prompt": "hi", "chosen": "x", "rejected": "y", "task": "math"})])
    assert file.column_of("chosen[2].content") == "good[2].content"


def test_a_field_that_first_appears_late_in_json_lines_is_not_lost(tmp_path):
    rows = [{k: v for k, v in ROWS[0].items() if k != "rewards"}] * 1200 + [ROWS[0]]
    assert read(write_jsonl(tmp_path / "a.jsonl", rows))[-1][1]["rewards"] == [1.0, 0.0]


def test_unreadable_json_lines_are_problems_with_their_line(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(ROWS[0]).encode(), b"", b'{"prompt": ', b'"\xff"', b"[" * 100_000, b"9" * 5000, json.dumps("\ud800").encode()]
    path.write_bytes(b"\n".join(lines))
    found = read(path)
    assert [number for number, _ in found] == [0, 2, 3, 4, 5, 6]
    assert [row.reason if isinstance(row, Problem) else row for _, row in found[1:]] == [Reason.UNPARSABLE] * 4 + ["\ud800"]


def test_parquet_text_that_is_not_utf8_costs_one_row(tmp_path):
    responses = pa.array([["x", "y"]] * 3)
    prompts = pa.array([b"a", b"\xff", b"c"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": prompts, "responses": responses}), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", source="m")
    assert [row["prompt"] if isinstance(row, dict) else row.reason for _, row in found] == ["a", Reason.UNPARSABLE, "c"]


# ------------------------------------------------------------------------------------------------------- refusals


def test_missing_file_names_the_place_and_its_neighbours(tmp_path):
    write_parquet(tmp_path / "mixture.parquet", ROWS)
    data = DataConfig(train=[{"path": str(tmp_path / "mixtur.parquet")}])
    with pytest.raises(DataError, match=r"data\.train\[0\]\.path: there is no file") as caught:
        fingerprint_sources(data)
    assert f"did you mean '{tmp_path / 'mixture.parquet'}'" in caught.value.hint


def test_relative_path_in_an_existing_folder_is_not_taken_for_a_dataset_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert "there is no file or folder 'data/mixture'" in refused("data/mixture").message


def test_dataset_name_offline_is_a_clear_refusal(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="'owner/preferences' is no local path") as caught:
        fingerprint_sources(DataConfig(train=[{"path": "owner/preferences"}]))
    assert "data.train[0].revision" in caught.value.hint


def test_pinned_dataset_name_needs_no_network_to_plan():
    data = DataConfig(train=[{"path": "owner/preferences", "revision": "a" * 40}])
    fingerprints = fingerprint_sources(data)
    assert fingerprints == {f"hf://datasets/owner/preferences@{'a' * 40}": "a" * 40}
    assert changed_sources(data, fingerprints) == []


def test_mapped_column_that_is_absent_lists_what_is_there(tmp_path):
    error = refused(write_parquet(tmp_path / "a.parquet", ROWS), columns={"responses": "response", "rewards": "score"})
    assert "columns.responses: no column 'response'" in error.message
    assert "columns.rewards: no column 'score'" in error.message
    assert "did you mean 'responses'? allowed: id, prompt, responses, rewards, sources" in error.hint


def test_neither_form_recognised(tmp_path):
    error = refused(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "x", "reject": "y"}]), source="m")
    assert "neither a column 'responses' nor both 'chosen' and 'rejected'" in error.message
    assert "did you mean 'reject'?" in error.hint


def test_mapping_that_would_be_ignored_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "x", "rejected": "y", "score": 1}])
    assert "rewards would be ignored" in refused(path, source="m", columns={"rewards": "score"}).message


@pytest.mark.parametrize("row", [{"prompt": "p", "responses": ["x", "y"]}, {"prompt": "p", "chosen": "x", "rejected": "y"}])
def test_sources_entirely_missing_is_refused_with_the_remedy(tmp_path, row):
    error = refused(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert "does not say who wrote its responses" in error.message
    assert "set data.train[0].source: NAME" in error.hint


def test_golden_without_a_response_column(tmp_path):
    assert "no column 'response'" in refused(write_parquet(tmp_path / "a.parquet", ROWS), place="data.golden[0]").message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"not parquet at all", "cannot read"),
        ("a.jsonl.gz", b"not gzip", "cannot read"),
        ("a.json", b'[\n{"prompt": "p"}\n]', "is a JSON array, not JSON lines"),
        ("a.jsonl", b"prompt: p\n- yaml\n", "none of its first 1000 lines is a JSON object"),
        ("a.csv", b"prompt,responses\n", "cannot tell the format"),
    ],
)
def test_damaged_or_foreign_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path / name).message


def test_empty_folder_and_unknown_scheme(tmp_path):
    assert "holds no jsonl or parquet file" in refused(tmp_path).message
    assert "cannot open" in refused("nowhere://bucket/key").message
    assert "holds credentials" in refused("s3://key:secret@bucket/data.parquet").message


# ------------------------------------------------------------------------------------------------------- fingerprints


def test_fingerprints_are_sha256_of_every_file_and_notice_any_change(tmp_path):
    a, b = write_jsonl(tmp_path / "a.jsonl", ROWS), write_jsonl(tmp_path / "b.jsonl", ROWS[:1])
    data = DataConfig(train=[{"path": str(tmp_path)}], golden=[{"path": str(b)}])
    before = fingerprint_sources(data)
    assert before == {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in (a, b)}
    assert changed_sources(data, before) == []
    write_jsonl(a, ROWS[:4])
    write_jsonl(tmp_path / "c.jsonl", ROWS)
    assert changed_sources(data, before) == [str(a), str(tmp_path / "c.jsonl")]


def test_inputs_know_their_place():
    data = DataConfig(train=[{"path": "a"}, {"path": "b"}], golden=[{"path": "c"}])
    assert [(place, source.path) for place, source in inputs_of(data)] == [
        ("data.train[0]", "a"),
        ("data.train[1]", "b"),
        ("data.golden[0]", "c"),
    ]

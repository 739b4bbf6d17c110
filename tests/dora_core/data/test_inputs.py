"""Inputs as rows: columns, forms, fingerprints of whole configurations, and the messages where an input is not as expected."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dora_core.config.data import DataConfig, DataSource
from dora_core.data import inputs
from dora_core.data.adapter.canonical import CanonicalRow
from dora_core.data.fingerprints import FingerprintMemory
from dora_core.data.inputs import (
    Content,
    Input,
    InputFile,
    changed_sources,
    fingerprint_inputs,
    fingerprint_sources,
    inputs_of,
    open_input,
    rules_of,
    split_of,
)
from dora_core.data.records import Record, is_held_out, parse_canonical
from dora_core.errors import DataError
from tests.dora_core.data.written_inputs import ROWS, input_at, read, refused, write_jsonl, write_parquet


def test_inputs_know_their_place_and_content() -> None:
    data = DataConfig(train=[{"path": "a"}, {"path": "b"}], golden=[{"path": "c"}])
    assert [(place, content, source.path) for source, content, place in inputs_of(data)] == [
        ("data.train[0]", "train", "a"),
        ("data.train[1]", "train", "b"),
        ("data.golden[0]", "golden", "c"),
    ]


def test_limits_of_the_configuration_are_those_of_the_rows() -> None:
    data = DataConfig(train=[{"path": "a", "source": "human"}], sources=["human"], max_responses=7, max_text_bytes=5000)
    rules = rules_of(data, inputs_of(data)[0])
    assert (rules.max_responses, rules.max_text_bytes, rules.allowed_sources, rules.default_source) == (7, 5000, {"human"}, "human")


def test_read_options_enter_a_dump_only_where_they_are_set() -> None:
    """Configurations written before there were such options keep the digest of their stages."""
    before = {"path", "format", "split", "revision", "columns", "source"}
    assert before <= DataSource(path="a").model_dump().keys()
    assert not {"subset", "data_dir", "data_files", "query"} & DataSource(path="a").model_dump(mode="json").keys()
    source = DataSource(path=["a", "b"], subset="s", data_files={"train": ["x"]})
    dumped = source.model_dump(mode="json")
    assert (dumped["path"], dumped["subset"], dumped["data_files"]) == (["a", "b"], "s", {"train": ["x"]})
    assert DataSource.model_validate(dumped) == source and source.shown == "a + 1 more"


def test_folder_is_read_in_order_of_names_and_skips_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_jsonl(tmp_path / "b.jsonl", ROWS[1:2])
    write_jsonl(tmp_path / "a.json", ROWS[:1])
    write_jsonl(tmp_path / "sub" / "c.jsonl", ROWS[2:3])
    write_jsonl(tmp_path / "_metadata.jsonl", ROWS[3:])
    assert [row["id"] for _, row in read(tmp_path)] == ["0", "1", "2"]
    write_parquet(tmp_path / "d.parquet", ROWS[4:])
    error = refused(tmp_path)
    assert "holds files of several formats (json: a.json, b.jsonl, sub/c.jsonl; parquet: d.parquet)" in error.message
    assert "set data.train[0].format: json or parquet" in error.hint
    assert [row["id"] for _, row in read(tmp_path, format="jsonl")] == ["0", "1", "2"]
    assert [row["id"] for _, row in read(tmp_path, format="parquet")] == ["4"]


# ------------------------------------------------------------------------------------------------------- columns


def resolved(path: Path, content: Content = "prompts", **source: Any) -> InputFile:
    (file,) = open_input(input_at(path, content, **source), {})
    return file


def test_columns_are_mapped_and_named_back(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"q": "hi", "good": "x", "bad": "y", "kind": "math", "extra": 1}])
    file = resolved(path, "responses", columns={"prompt": "q", "chosen": "good", "rejected": "bad", "task": "kind"})
    assert (file.form, list(file.rows())) == ("pairwise", [(0, {"prompt": "hi", "chosen": "x", "rejected": "y", "task": "math"})])
    assert file.column_of("chosen[2].content") == "good[2].content"


def test_content_decides_the_form_and_the_place_only_names_it(tmp_path: Path) -> None:
    """One file in two forms; a place that looks like golden data changes nothing."""
    source = DataSource(path=str(write_parquet(tmp_path / "a.parquet", [ROWS[0] | {"response": "z", "record_id": "r"}])))
    (prompts,), (responses,) = (open_input(Input(source, content, "data.golden[0]"), {}) for content in ("prompts", "responses"))
    assert (prompts.form, prompts.columns) == ("prompt", {"id": "id", "prompt": "prompt"})
    assert responses.form == "sample" and responses.columns["response"] == "response"
    assert resolved(write_parquet(tmp_path / "b.parquet", ROWS), "responses").form == "listwise"


def test_prompts_and_responses_take_the_id_of_our_own_tables_and_need_no_source(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"record_id": "r", "prompt": "p", "response": "z"}])
    assert list(resolved(path).rows()) == [(0, {"id": "r", "prompt": "p"})]
    assert list(resolved(path, "responses").rows()) == [(0, {"id": "r", "prompt": "p", "response": "z"})]


def test_mapped_column_that_is_absent_lists_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        resolved(write_parquet(tmp_path / "a.parquet", ROWS), columns={"responses": "response", "rewards": "score"})
    assert "columns.responses: no column 'response'" in caught.value.message
    assert "columns.rewards: no column 'score'" in caught.value.message
    assert "did you mean 'responses'? allowed: id, prompt, responses, rewards, sources" in caught.value.hint


def test_no_form_recognised(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        resolved(write_jsonl(tmp_path / "a.jsonl", [{"query": "p", "chosen": "x", "reject": "y"}]))
    assert "neither a column 'prompt' nor both 'chosen' and 'rejected'" in caught.value.message
    assert "did you mean 'reject'?" in caught.value.hint


def test_mapping_that_would_be_ignored_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "x", "rejected": "y", "score": 1}])
    with pytest.raises(DataError, match="rewards would be ignored"):
        resolved(path, columns={"rewards": "score"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"not parquet at all", "cannot read"),
        ("a.jsonl.gz", b"not gzip", "cannot read"),
        ("a.json", b'[\n{"prompt": "p"}\n}', "line 3, column 1: expected , or ], found '}'"),
        ("a.jsonl", b"prompt: p\n- yaml\n", "none of its first 1000 lines is a JSON object"),
        ("a.txt", b"prompt,responses\n", "cannot tell the format"),
    ],
)
def test_damaged_or_foreign_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path / name).message


def test_split_of_a_record() -> None:
    """By the input, then by the row, then by what other inputs there are, then by the hash of the prompt."""
    train, golden = inputs_of(DataConfig(train=[{"path": "a"}], golden=[{"path": "c"}]))
    by_hash = DataConfig(train=[{"path": "a"}], holdout_fraction=0.5)
    held_out = DataConfig(train=[{"path": "a"}], eval=[{"path": "b"}])
    fields = {"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}
    found = parse_canonical(CanonicalRow("pairwise", fields), rules_of(by_hash, train))
    assert isinstance(found, Record)
    hashed = "eval" if is_held_out(found.prompt_hash, 0.5) else "train"
    assert split_of(found, train, by_hash) == hashed and split_of(found, train, held_out) == "train"
    assert split_of(found, golden, by_hash) == hashed
    assert split_of(replace(found, split="eval"), train, held_out) == "eval"
    assert split_of(replace(found, split="train"), train._replace(content="eval"), by_hash) == "eval"


# ------------------------------------------------------------------------------------------------------- fingerprints


def test_fingerprints_are_sha256_of_every_file_and_notice_any_change(tmp_path: Path) -> None:
    a, b = write_jsonl(tmp_path / "a.jsonl", ROWS), write_jsonl(tmp_path / "b.jsonl", ROWS[:1])
    data = DataConfig(train=[{"path": str(tmp_path)}], golden=[{"path": str(b)}])
    before = fingerprint_sources(data)
    assert before == {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in (a, b)}
    assert changed_sources(data, before) == []
    write_jsonl(a, ROWS[:4])
    write_jsonl(tmp_path / "c.jsonl", ROWS)
    assert changed_sources(data, before) == [str(a), str(tmp_path / "c.jsonl")]


class Reads:
    """Counts the files of inputs that are opened to be hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.opened: list[str] = []
        local = inputs.pafs.LocalFileSystem

        class Counting(local):
            def open_input_stream(this, path: str, **how: Any) -> Any:
                self.opened.append(Path(path).name)
                return super().open_input_stream(path, **how)

        monkeypatch.setattr(inputs.pafs, "LocalFileSystem", Counting)

    def __call__(self) -> list[str]:
        """Names since the last call."""
        names, self.opened = self.opened, []
        return names


def aged(path: Path) -> int:
    """A moment at which the last change of ``path`` is long enough ago to trust its times."""
    return path.stat().st_ctime_ns + 10 * 10**9


def test_a_second_plan_reads_no_bytes_and_notices_a_change_of_equal_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, memory = tmp_path / "data", tmp_path / "home" / "fingerprints.json"
    folder.mkdir()
    a, b = write_jsonl(folder / "a.jsonl", ROWS), write_jsonl(folder / "b.jsonl", ROWS[:1])
    data, reads = DataConfig(train=[{"path": str(folder)}]), Reads(monkeypatch)
    first = fingerprint_sources(data, FingerprintMemory(memory, lambda: aged(b)))
    assert reads() == ["a.jsonl", "b.jsonl"]
    assert fingerprint_sources(data, FingerprintMemory(memory, lambda: aged(b))) == first
    assert changed_sources(data, first, FingerprintMemory(memory, lambda: aged(b))) == []
    assert reads() == []

    content = a.read_bytes()
    a.write_bytes(content.replace(b"p0", b"q0"))
    assert a.stat().st_size == len(content)
    assert changed_sources(data, first, FingerprintMemory(memory, lambda: aged(a))) == [str(a)]
    assert reads() == ["a.jsonl"]
    a.write_bytes(content)
    os.utime(b)
    assert fingerprint_sources(data, FingerprintMemory(memory, lambda: aged(b))) == first
    assert reads() == ["a.jsonl", "b.jsonl"], "touched, so read again, and equal"
    assert changed_sources(data, first, FingerprintMemory(memory, lambda: aged(b))) == [] == reads()


def test_a_file_that_is_two_inputs_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = write_jsonl(tmp_path / "a.jsonl", ROWS), Reads(monkeypatch)
    found = fingerprint_inputs([input_at(path), input_at(path, "golden")])
    assert list(found) == [str(path)] and reads() == ["a.jsonl"]


def test_a_mapped_column_of_prompts_may_begin_after_the_lines_by_which_columns_are_known(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"q{i}"} for i in range(1100)] + [{"prompt": "last", "kind": "math"}])
    (file,) = open_input(input_at(path, "prompts", columns={"task": "kind"}), {})
    *_, (_, last) = file.rows()
    assert last["task"] == "math"
    with pytest.raises(DataError, match="no column 'sort'"):
        list(open_input(input_at(path, "prompts", columns={"task": "sort"}), {}))

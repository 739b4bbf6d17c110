"""Prompts and responses from files as the tables that generate and judge read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dora_core.config.adapter import AdapterColumns
from dora_core.config.data import DataSource
from dora_core.data.records import RECORDS_SCHEMA, hash_prompt
from dora_core.errors import DataError
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages import prompts


def written(path: Path, rows: list[dict[str, Any]], **columns: str) -> DataSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(path=str(path), columns=AdapterColumns(**columns))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def tables(store: Store, spec: prompts.Spec) -> dict[str, list[dict[str, Any]]]:
    """Rows of every output file, by its stem."""
    execute(spec, prompts.run, store)
    return {path.stem: pq.read_table(path).to_pylist() for path in store.fetch(spec.stage, spec.digest()).glob("*.parquet")}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_prompts_as_strings_messages_and_transcripts(store: Store, tmp_path: Path) -> None:
    system = [{"role": "system", "content": "Be brief."}, *user("b")]
    rows = [
        {"prompt": "a", "task": "math"},
        {"prompt": system, "id": "x", "response": "not read"},
        {"prompt": "\n\nHuman: c\n\nAssistant:"},
        {"prompt": user("a"), "task": "another row of the same record"},
    ]
    spec = prompts.plan("prompts", written(tmp_path / "p.jsonl", rows))
    found = tables(store, spec)
    assert found.keys() == {"records"}
    assert [(r["prompt"], r["task"]) for r in found["records"]] == [(user("a"), "math"), (system, None), (user("c"), None)]
    assert [r["record_id"] for r in found["records"]] == [f"{hash_prompt(user('a')):016x}", "x", f"{hash_prompt(user('c')):016x}"]
    assert all(r["split"] == "eval" and r["responses"] == [] and r["prompt_hash"] == hash_prompt(r["prompt"]) for r in found["records"])
    assert pq.read_schema(store.fetch("prompts", spec.digest()) / "records.parquet") == RECORDS_SCHEMA


def test_read_options_are_part_of_the_digest(tmp_path: Path) -> None:
    source = written(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    specs = [prompts.plan("prompts", source.evolve(**options)) for options in ({}, {"split": "train[:1]"}, {"split": "train[1:]"})]
    assert len({spec.digest() for spec in specs}) == 3 and len(specs[0].content) == 1


def test_responses_are_grouped_by_record_and_know_their_row(store: Store, tmp_path: Path) -> None:
    rows = [{"prompt": p, "response": r} for p, r in [("a", "a0"), ("b", "b0"), ("a", ""), ("b", "b0"), ("a", "a2")]]
    found = tables(store, prompts.plan("responses", written(tmp_path / "r.jsonl", rows)))
    assert [r["responses"] for r in found["records"]] == [["a0", "", "a2"], ["b0", "b0"]]
    samples = [(s["row"], s["sample"], s["response"]) for s in found["samples"]]
    assert samples == [(0, 0, "a0"), (2, 1, ""), (4, 2, "a2"), (1, 0, "b0"), (3, 1, "b0")]
    ids = {s["record_id"]: s["prompt_hash"] for s in found["samples"]}
    assert ids == {r["record_id"]: r["prompt_hash"] for r in found["records"]}


def test_preference_data_is_read_in_both_roles_and_needs_no_source(store: Store, tmp_path: Path) -> None:
    pairs = [{"chosen": "\n\nHuman: a\n\nAssistant: good", "rejected": "\n\nHuman: a\n\nAssistant: bad"}]
    pairwise = written(tmp_path / "pairs.jsonl", pairs)
    assert [r["prompt"] for r in tables(store, prompts.plan("prompts", pairwise))["records"]] == [user("a")]
    lists = written(tmp_path / "lists.jsonl", [{"question": "q", "answers": ["1", "2", "3"]}], prompt="question", responses="answers")
    for source, expected in ((pairwise, ["good", "bad"]), (lists, ["1", "2", "3"])):
        found = tables(store, prompts.plan("responses", source))
        assert [s["response"] for s in found["samples"]] == expected
        assert {s["row"] for s in found["samples"]} == {0}


def test_against_gives_the_record_other_responses(store: Store, tmp_path: Path) -> None:
    ours = written(tmp_path / "ours.jsonl", [{"prompt": p, "response": f"ours {p}"} for p in "ab"])
    rows = [{"prompt": user(p), "response": f"theirs {i} {p}"} for i in (0, 1) for p in "bca"]
    spec = prompts.plan("responses", ours, written(tmp_path / "theirs.jsonl", rows))
    found = tables(store, spec)
    assert [r["responses"] for r in found["records"]] == [["theirs 0 a", "theirs 1 a"], ["theirs 0 b", "theirs 1 b"]]
    assert [s["response"] for s in found["samples"]] == ["ours a", "ours b"]
    few = prompts.plan("responses", ours, written(tmp_path / "few.jsonl", rows[:1]))
    with pytest.raises(DataError, match=r"1 of 2 prompts have no response in .*few\.jsonl"):
        execute(few, prompts.run, store)


def test_the_digest_is_that_of_content_and_columns(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "question": "b"}]
    first = prompts.plan("prompts", written(tmp_path / "one.jsonl", rows))
    assert prompts.plan("prompts", written(tmp_path / "two.jsonl", rows)).digest() == first.digest()
    others = [
        prompts.plan("prompts", written(tmp_path / "two.jsonl", rows, prompt="question")),
        prompts.plan("prompts", written(tmp_path / "two.jsonl", [*rows, *rows])),
    ]
    assert len({first.digest(), *(other.digest() for other in others)}) == 3


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("prompts", [{"question": "a"}], "neither a column 'prompt' nor both"),
        ("responses", [{"prompt": "a"}], "neither a column 'response' nor both"),
        ("prompts", [{"prompt": "a"}, {"prompt": " "}, {"prompt": 3}], r"2 rows are bad, the first:\n  .*row 2: prompt: empty_prompt"),
        ("responses", [{"prompt": "a", "response": None}], "row 1: response: missing_response"),
        ("responses", [{"id": "x", "prompt": p, "response": "r"} for p in "ab"], "rows 1 and 2 have the id 'x' and different prompts"),
    ],
)
def test_bad_files_are_refused_with_the_place(kind: Any, rows: list[dict], message: str, store: Store, tmp_path: Path) -> None:
    spec = prompts.plan(kind, written(tmp_path / "f.jsonl", rows))
    with pytest.raises(DataError, match=message) as caught:
        execute(spec, prompts.run, store)
    assert caught.value.hint


def test_files_that_are_missing_empty_or_changed(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file or folder"):
        prompts.plan("prompts", DataSource(path=str(tmp_path / "nothing.jsonl")))
    with pytest.raises(DataError, match="has no rows"):
        execute(prompts.plan("prompts", written(tmp_path / "empty.jsonl", [])), prompts.run, store)
    spec = prompts.plan("prompts", written(tmp_path / "f.jsonl", [{"prompt": "a"}]))
    written(tmp_path / "f.jsonl", [{"prompt": "b"}])
    with pytest.raises(DataError, match="changed between planning and reading"):
        execute(spec, prompts.run, store)

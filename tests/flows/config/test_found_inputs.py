"""Inputs without a configuration: splits of a folder, content by what can be read, and assumptions as comments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dora_core.errors import DataError
from flows.config.found_inputs import look_at, look_at_all, splits_at
from tests.dora_core.data.written_inputs import write_jsonl

PAIRS = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(3)]


def test_splits_of_file_names_and_of_a_saved_dictionary(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", PAIRS)
    write_jsonl(tmp_path / "test.jsonl", PAIRS)
    assert splits_at(tmp_path) == ["test", "train"] and splits_at(tmp_path / "train.jsonl") == []
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "holdout"]}))
    assert splits_at(tmp_path) == ["holdout", "train"]


def test_a_folder_with_splits_is_training_and_evaluation_data(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", PAIRS)
    write_jsonl(tmp_path / "test.jsonl", PAIRS)
    train, held_out = look_at_all(str(tmp_path), several=False)
    assert (train.content, held_out.content, held_out.keys["split"]) == ("train", "eval", "test")
    assert "ASSUMED evaluation data: the split test" in held_out.comments


@pytest.mark.parametrize(
    ("name", "several", "content"), [("test.jsonl", True, "eval"), ("test.jsonl", False, "train"), ("a.jsonl", True, "train")]
)
def test_a_file_named_like_evaluation_data_is_that_only_beside_others(name: str, several: bool, content: str, tmp_path: Path) -> None:
    assert look_at(str(write_jsonl(tmp_path / name, PAIRS)), several=several).content == content


def test_single_responses_are_trusted_ones(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{i}", "input": "", "output": "Wipe it."} for i in range(3)]
    found = look_at(str(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert (found.content, found.keys["preset"]) == ("golden", "alpaca") and "columns" in found.text


def test_data_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        look_at(str(write_jsonl(tmp_path / "a.jsonl", [{"x": 1, "y": 2}])))


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


def test_rows_that_are_marked_as_withdrawn_are_left_out_with_a_comment(tmp_path: Path) -> None:
    rows = [{**PAIR, "prompt": f"q{i}", "status": "discarded" if i else "submitted"} for i in range(3)]
    found = look_at(str(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert found.keys == {"preset": "trl", "leave_out": {"status": ["discarded"]}}
    assert found.comments[0].startswith("ASSUMED rows that column 'status' marks are left out")


@pytest.mark.parametrize(
    "row",
    [{**PAIR, "swapped": True}, {**PAIR, "status": "tie"}, {"prompt": "q", "responses": ["a", "b"], "ranking": [2, 1]}],
    ids=["swapped", "tie", "ranking"],
)
def test_a_label_that_may_turn_records_round_is_not_decided_for_the_user(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="need a decision"):
        look_at(str(write_jsonl(tmp_path / "a.jsonl", [row])))

"""Training files that are named like evaluation data."""

from __future__ import annotations

import pytest

from dora_core.data.suspicion import rules
from tests.dora_core.data.suspicion.given import DATA


@pytest.mark.parametrize(
    ("name", "suspicious"),
    [
        ("data/test.jsonl", True),
        ("test-00000-of-00001.parquet", True),
        ("my_validation_v2.json", True),
        ("train.jsonl", False),
        ("train_test_split.jsonl", False),
        ("latest.jsonl", False),
        ("test/train.jsonl", False),
    ],
)
def test_file_named_like_evaluation_data(name: str, suspicious: bool) -> None:
    for place, gives_split, expected in (
        ("data.train[0]", False, suspicious),
        ("data.train[0]", True, False),
        ("data.eval[0]", False, False),
    ):
        rule = rules()["evaluation_file_in_train"](DATA)
        rule.opened(place, [name], gives_split)
        assert [finding.level for finding in rule.findings()] == (["refuse"] if expected else [])


def test_three_files_are_named_and_the_others_counted() -> None:
    rule = rules()["evaluation_file_in_train"](DATA)
    rule.opened("data.train[0]", [f"test_{i}.jsonl" for i in range(5)], False)
    (finding,) = rule.findings()
    assert finding.count == 5 and "data.train[0]: test_2.jsonl and 2 more" in finding.message and "test_3" not in finding.message

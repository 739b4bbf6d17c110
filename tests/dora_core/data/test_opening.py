"""All inputs of a configuration opened together: files and evaluation texts reach the rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from dora_core.config.data import DataConfig
from dora_core.data.opening import open_inputs
from dora_core.errors import DataError
from tests.dora_core.data.written_inputs import write_jsonl

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "train.jsonl", [PAIR])
    write_jsonl(tmp_path / "test.jsonl", [{**PAIR, "split": "test"}])
    write_jsonl(tmp_path / "exam.jsonl", [{"question": "Why?", "choices": [{"text": "A"}, {"text": "B"}], "answer": 1}])
    return tmp_path


def config(folder: Path, *names: str, **keys: object) -> DataConfig:
    train = [{"path": str(folder / name), "source": "human"} for name in names]
    return DataConfig.model_validate({"train": train, "decontaminate": [str(folder / "exam.jsonl")], **keys})


def test_every_input_is_opened_in_the_order_of_the_configuration(folder: Path) -> None:
    inputs, suspicion = open_inputs(config(folder, "train.jsonl", "test.jsonl"), {})
    assert [one.item.place for one in inputs] == ["data.train[0]", "data.train[1]"]
    assert [(one.shape, one.gives_split) for source in inputs for one in source.mapped] == [("pair", False), ("pair", True)]
    assert suspicion.findings() == [], "rows of test.jsonl say their split themselves"


def test_rules_see_the_names_of_the_files(folder: Path) -> None:
    write_jsonl(folder / "test.jsonl", [PAIR])
    _, suspicion = open_inputs(config(folder, "test.jsonl"), {}, references=False)
    (finding,) = suspicion.findings()
    assert (finding.rule, finding.level) == ("evaluation_file_in_train", "refuse")


def test_a_reference_that_cannot_be_read_is_refused_only_where_it_is_read(folder: Path) -> None:
    (folder / "exam.jsonl").unlink()
    with pytest.raises(DataError, match=r"exam\.jsonl"):
        open_inputs(config(folder, "train.jsonl"), {})
    inputs, _ = open_inputs(config(folder, "train.jsonl"), {}, references=False)
    assert len(inputs) == 1

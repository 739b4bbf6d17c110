"""All inputs of a configuration opened together: files and evaluation texts reach the rules, limits reach the rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dora_core.config.data import DataConfig
from dora_core.data.adapter.base import CanonicalRow
from dora_core.data.inputs import inputs_of
from dora_core.data.opening import is_repetition, mapped, open_inputs, reference_texts, rules_of, split_of
from dora_core.data.problems import Reason, problem
from dora_core.data.records import Record, is_held_out, parse_canonical
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
    assert [(one.shape, one.gives_split) for source in inputs for one in mapped(source)] == [("pair", False), ("pair", True)]
    assert suspicion.findings() == [], "rows of test.jsonl say their split themselves"


def test_split_of_a_record(folder: Path) -> None:
    """By the input, then by the row, then by what other inputs there are, then by the hash of the prompt."""
    (train,), (golden,) = (
        [one for one in inputs_of(config(folder, "train.jsonl", golden=[{"path": "c"}])) if one.content == content]
        for content in ("train", "golden")
    )
    by_hash, held_out = config(folder, "train.jsonl", holdout_fraction=0.5), config(folder, "train.jsonl", eval=[{"path": "b"}])
    found = parse_canonical(CanonicalRow("pairwise", PAIR | {"prompt": [{"role": "user", "content": "q"}]}), rules_of(by_hash, train))
    assert isinstance(found, Record)
    hashed = "eval" if is_held_out(found.prompt_hash, 0.5) else "train"
    assert split_of(found, train, by_hash) == hashed and split_of(found, train, held_out) == "train"
    assert split_of(found, golden, by_hash) == hashed
    assert split_of(replace(found, split="eval"), train, held_out) == "eval"
    assert split_of(replace(found, split="train"), train._replace(content="eval"), by_hash) == "eval"


def test_rules_see_the_names_of_the_files(folder: Path) -> None:
    write_jsonl(folder / "test.jsonl", [PAIR])
    _, suspicion = open_inputs(config(folder, "test.jsonl"), {}, references=False)
    (finding,) = suspicion.findings()
    assert (finding.rule, finding.level) == ("evaluation_file_in_train", "refuse")


def test_reference_texts_are_all_texts_at_any_depth(folder: Path) -> None:
    assert list(reference_texts(config(folder, "train.jsonl"), {})) == ["Why?", "A", "B"]


def test_a_reference_that_cannot_be_read_is_refused_only_where_it_is_read(folder: Path) -> None:
    (folder / "exam.jsonl").unlink()
    with pytest.raises(DataError, match=r"exam\.jsonl"):
        open_inputs(config(folder, "train.jsonl"), {})
    inputs, _ = open_inputs(config(folder, "train.jsonl"), {}, references=False)
    assert len(inputs) == 1


def test_limits_of_the_configuration_are_those_of_the_rows(folder: Path) -> None:
    data = config(folder, "train.jsonl", sources=["human"], max_responses=7, max_text_bytes=5000)
    rules = rules_of(data, inputs_of(data)[0])
    assert (rules.max_responses, rules.max_text_bytes, rules.allowed_sources, rules.default_source) == (7, 5000, {"human"}, "human")


def test_a_repeated_row_without_an_id_is_a_repetition_and_with_an_id_a_fault() -> None:
    twice = [problem("id", Reason.DUPLICATE_ID, "is there twice")]
    assert is_repetition(CanonicalRow("pairwise", dict(PAIR)), twice)
    assert not is_repetition(CanonicalRow("pairwise", {**PAIR, "id": "7"}), twice)
    assert not is_repetition(CanonicalRow("pairwise", dict(PAIR)), [*twice, problem("prompt", Reason.WRONG_TYPE, "x")])
    assert not is_repetition(twice, twice)

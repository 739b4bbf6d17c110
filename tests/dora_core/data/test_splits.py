"""Split expressions against ``datasets``, and split names in file names and columns."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dora_core.data.splits import Part, Slice, is_named_shard, parse_split, split_named, split_of_file
from dora_core.errors import DataError

BOUNDS = st.one_of(st.just(""), st.integers(-30, 30).map(str), st.integers(-100, 100).map(lambda n: f"{n}%"))


@settings(max_examples=200, deadline=None)
@given(start=BOUNDS, stop=BOUNDS, rows=st.integers(0, 40))
def test_slices_are_those_of_datasets(start: str, stop: str, rows: int) -> None:
    from datasets import ReadInstruction

    if (start.endswith("%") or stop.endswith("%")) and "" not in (start, stop) and start.endswith("%") != stop.endswith("%"):
        return  # datasets knows one unit per slice
    (part,) = parse_split(f"train[{start}:{stop}]", "x")
    assert part.rows is not None
    theirs = ReadInstruction.from_spec(f"train[{start}:{stop}]").to_absolute({"train": rows})[0]
    first, end = part.rows.window(rows)
    assert list(range(rows))[first:end] == list(range(rows))[theirs.from_ : theirs.to]


def test_terms_keep_their_order_and_other_forms_are_refused() -> None:
    assert parse_split("train[:10%]+validation + test[5:]", "x") == [
        Part("train", Slice(None, "10%")),
        Part("validation", None),
        Part("test", Slice("5", None)),
    ]
    assert parse_split("train-prefs.v2", "x") == [Part("train-prefs.v2", None)]
    for text in ("train[10]", "train[a:b]", "train+", "[1:2]", "train[1:2", "a b"):
        with pytest.raises(DataError, match=r"data\.train\[0\]\.split: cannot read") as caught:
            parse_split(text, "data.train[0]")
        assert "train[:10%]" in caught.value.hint


@pytest.mark.parametrize(
    ("below", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/train_prefs-00000-of-00001.parquet", "train_prefs"),
        ("data/gen_a-00000-of-00001-0123456789abcdef.parquet", "gen_a"),
        ("train.jsonl", "train"),
        ("train_2.jsonl.gz", "train"),
        ("train_part_2.jsonl", "train"),
        ("my-train-data.jsonl", "train"),
        ("test_prefs.jsonl", "test_prefs"),
        ("en/valid/a.jsonl", "validation"),
        ("test.jsonl", "test"),
        ("split=dev/part-0.parquet", "dev"),
        ("source=test/part-0.parquet", None),
        ("train/eval.jsonl", "test"),
        ("latest.jsonl", None),
        ("part-00000-of-00002.parquet", None),
        ("human.jsonl", None),
    ],
)
def test_split_in_a_file_name(below: str, split: str | None) -> None:
    assert split_of_file(below) == split


def test_named_shards_lie_in_data() -> None:
    assert is_named_shard("data/train-00000-of-00002.parquet") and not is_named_shard("train-00000-of-00002.parquet")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Train_sft", "train"),
        ("TEST", "eval"),
        ("valid2", "eval"),
        ("dev", "eval"),
        ("held-out", "eval"),
        ("pool", None),
        ("", None),
    ],
)
def test_split_by_name(name: str, split: str | None) -> None:
    assert split_named(name, {}) == split


def test_further_names_of_splits_come_first() -> None:
    assert split_named("Test ", {"test": "train"}) == "train"

"""Refusals of ingest: the bound on bad rows at its edge, sources and splits, each with its way out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dora_core.config.data import DataConfig
from dora_core.errors import DataError
from tasks.stages._ingest_checks import Tally, check_quality, check_sources, check_splits
from tasks.stages._ingest_facts import BadRowFacts

QUARANTINE = Path("quarantine.parquet")


def data(**keys: Any) -> DataConfig:
    return DataConfig.model_validate({"train": [{"path": "a"}], "golden_sources": ["human"], **keys})


def tally(rows: int, **reasons: int) -> Tally:
    first = {name: BadRowFacts(kind="train", reason=name, file="a.jsonl", row=n, text=f"{name} here") for n, name in enumerate(reasons)}
    bad = sum(reasons.values())
    return Tally(rows, bad, rows - bad, Counter(reasons), first)


def test_a_share_at_the_bound_passes_and_one_row_more_refuses() -> None:
    config = data(max_bad_fraction=0.1)
    check_quality({"train": tally(100, wrong_type=10)}, config, QUARANTINE)
    with pytest.raises(DataError) as caught:
        check_quality({"train": tally(100, wrong_type=10, media=1)}, config, QUARANTINE)
    assert "11 of 100 rows in data.train are bad (wrong_type 10, media 1), more than data.max_bad_fraction = 0.1" in caught.value.message
    assert "wrong_type, e.g. row 0 of a.jsonl: wrong_type here" in caught.value.message and "quarantine.parquet" in caught.value.hint


def test_the_most_frequent_reasons_are_shown() -> None:
    words = tally(100, a=1, b=5, c=3, d=2).in_words()
    assert [line.split(",")[0].strip() for line in words.strip().splitlines()] == ["b", "c", "d"]


def test_an_input_without_a_good_row_is_refused() -> None:
    config = data(max_bad_fraction=1.0)
    for given, message in ((tally(0), "data.train holds no rows"), (tally(2, media=2), "no good row is left")):
        with pytest.raises(DataError, match=message) as caught:
            check_quality({"train": given}, config, QUARANTINE)
        assert "give data.train at least one good row" in caught.value.hint
    check_quality({"train": tally(1), "golden": tally(0)}, config, QUARANTINE)


def test_sources_must_be_there_and_one_of_them_trusted() -> None:
    check_sources(["human", "bot"], 0, data())
    check_sources([], 3, data())
    with pytest.raises(DataError, match=r"no response in data\.train has a source") as caught:
        check_sources([], 0, data())
    assert "data.train[i].columns.sources: COLUMN" in caught.value.hint
    with pytest.raises(DataError, match=r"no source matches data\.golden_sources") as caught:
        check_sources(["bot", "crowd"], 0, data())
    assert "bot, crowd" in caught.value.hint


@pytest.mark.parametrize(
    ("splits", "given", "hint"),
    [
        ({"train": 5}, 0, "data.holdout_fraction = "),
        ({"train": 5}, 5, "the data gives the split of 5 records, all of them train"),
        ({"eval": 5}, 5, "all of them eval"),
    ],
)
def test_both_splits_need_records(splits: dict[str, int], given: int, hint: str) -> None:
    with pytest.raises(DataError, match="none of 5 records falls into the") as caught:
        check_splits(Counter(splits), data(), given)
    assert hint in caught.value.hint
    check_splits(Counter(train=4, eval=1), data(), given)

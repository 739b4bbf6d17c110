"""Rules of acceptance: the bound on bad rows at its edge, sources, splits, unpaired rows and groups, each with its way out."""

from __future__ import annotations

from typing import Any

import pytest

from dora_core.config.data import DataConfig
from dora_core.config.method import Grouping
from dora_core.data.acceptance import (
    BadRow,
    Mapped,
    Quality,
    Wanted,
    bad_rows,
    both_splits,
    refuse_first,
    trusted_sources,
    unusable,
)
from dora_core.errors import ConfigError, DataError
from dora_core.losses import parse_loss


def data(**keys: Any) -> DataConfig:
    return DataConfig.model_validate({"train": [{"path": "a"}], "golden_sources": ["human"], **keys})


def quality(rows: int, **reasons: int) -> Quality:
    found = Quality(rows=rows, kept=rows - sum(reasons.values()))
    for reason, count in reasons.items():
        for n in range(count):
            found.see_bad(BadRow(file="a.jsonl", row=n + 3, reason=reason, text=f"{reason} here"))
    return found


def test_a_share_at_the_bound_passes_and_one_row_more_refuses() -> None:
    config = data(max_bad_fraction=0.1)
    assert bad_rows("train", quality(100, wrong_type=10), config) is None
    refusal = bad_rows("train", quality(100, wrong_type=10, media=1), config, quarantine="q.parquet", seen="in the first 100 rows: ")
    assert refusal is not None and refusal.message.startswith(
        "in the first 100 rows: 11 of 100 rows in data.train are bad (wrong_type 10, media 1), more than data.max_bad_fraction = 0.1"
    )
    assert "wrong_type, e.g. row 3 of a.jsonl: wrong_type here" in refusal.message and "q.parquet" in refusal.hint
    with pytest.raises(DataError, match="11 of 100"):
        refuse_first([None, refusal])


def test_the_most_frequent_reasons_are_shown() -> None:
    words = quality(100, a=1, b=5, c=3, d=2).in_words()
    assert [line.split(",")[0].strip() for line in words.strip().splitlines()] == ["b", "c", "d"]


def test_an_input_without_a_good_row_is_refused() -> None:
    config = data(max_bad_fraction=1.0)
    for given, message in ((quality(0), "data.train holds no rows"), (quality(2, media=2), "no good row is left")):
        refusal = bad_rows("train", given, config)
        assert refusal is not None and message in refusal.message and "give data.train at least one good row" in refusal.hint
    assert bad_rows("golden", quality(0), config) is None, "there is no data.golden"


def test_sources_must_be_there_and_one_of_them_trusted() -> None:
    assert trusted_sources(["human", "bot"], 0, data()) is None
    assert trusted_sources([], 3, data()) is None
    nameless, untrusted = trusted_sources([], 0, data()), trusted_sources(["bot", "crowd"], 0, data())
    assert nameless is not None and "no response in data.train has a source" in nameless.message
    assert "data.train[i].columns.sources: COLUMN" in nameless.hint
    assert untrusted is not None and "no source matches data.golden_sources = ['human']" in untrusted.message
    assert "bot, crowd" in untrusted.hint
    many = trusted_sources([f"m{i}" for i in range(25)], 0, data())
    assert many is not None and "m19 and 5 more" in many.hint


@pytest.mark.parametrize(
    ("splits", "given", "hint"),
    [
        ({"train": 5}, 0, "data.holdout_fraction = "),
        ({"train": 5}, 5, "the data gives the split of 5 records, all of them train"),
        ({"eval": 5}, 5, "all of them eval"),
    ],
)
def test_both_splits_need_records(splits: dict[str, int], given: int, hint: str) -> None:
    refusal = both_splits(splits, given, data())
    assert refusal is not None and "none of 5 records falls into the" in refusal.message and hint in refusal.hint
    assert both_splits({"train": 4, "eval": 1}, given, data()) is None


def mapped(place: str, shape: str = "pair", carried: tuple[str, ...] = (), *, gives_split: bool = False) -> Mapped:
    return Mapped(place, shape, carried, gives_split)


def test_unpaired_training_rows_need_a_loss_that_reads_them() -> None:
    inputs = [mapped("data.train[0]"), mapped("data.train[1]", "unpaired"), mapped("data.eval[0]", "unpaired")]
    assert not list(unusable(Wanted(), data(), inputs)), "without an alignment"
    assert not list(unusable(Wanted(loss=parse_loss("kto")), data(), inputs))
    (refusal,) = unusable(Wanted(loss=parse_loss("dpo")), data(), inputs)
    assert refusal.message.startswith("data.train[1]: rows are unpaired") and "align.loss.name: dpo" in refusal.message
    assert "set align.loss.name to bco or kto" in refusal.hint
    assert not list(unusable(Wanted(loss=parse_loss("dpo")), data(), inputs[::2])), "evaluation reads labels"


@pytest.mark.parametrize(
    ("column", "carried"), [("annotator", "annotator"), ("info.site", "info"), ("info.site", "info.site"), ("x.y", '"x.y"')]
)
def test_a_group_is_a_carried_column_or_inside_one(column: str, carried: str) -> None:
    wanted = Wanted(groups=(Grouping(column=column),))
    assert not list(unusable(wanted, data(), [mapped("data.train[0]", carried=(carried,))]))


@pytest.mark.parametrize("column", ["anotator", "info", "annotators[].id"])
def test_a_group_that_nothing_carries_is_refused_with_near_names(column: str) -> None:
    wanted = Wanted(groups=(Grouping(column="lang"), Grouping(column=column)))
    inputs = [mapped("data.train[0]", carried=("annotator", "info.site")), mapped("data.train[1]", carried=("lang",))]
    (refusal,) = unusable(wanted, data(), inputs)
    assert refusal.message == f"evaluate.groups[1]: no held-out input carries the column {column!r}"
    assert "annotator" in refusal.hint and f"data.train[0].carry: [{column}]" in refusal.hint
    with pytest.raises(ConfigError):
        refuse_first([refusal])


def test_groups_are_those_of_held_out_records() -> None:
    wanted, config = Wanted(groups=(Grouping(column="lang"),)), data(eval=[{"path": "b"}])
    train = mapped("data.train[0]", carried=("lang",))
    (refusal,) = unusable(wanted, config, [train, mapped("data.eval[0]")])
    assert "data.eval[0].carry: [lang]" in refusal.hint
    assert not list(unusable(wanted, config, [train._replace(gives_split=True), mapped("data.eval[0]")]))

"""Golden and synthetic records, and the number of records that train."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.data.records import RECORDS_SCHEMA
from tasks.tables.record_selection import RecordSelection
from tasks.tables.training_records import count_trainable

ROWS: list[tuple[list[str | None], list[float | None], str, str]] = [  # sources, rewards, kind, split
    (["human", "human"], [1.0, 0.0], "reward", "train"),  # golden
    (["human-2", "human"], [1.0, 1.0], "reward", "train"),  # golden, tied
    (["human", "bot"], [1.0, 0.0], "reward", "train"),  # mixed: neither
    (["bot", "cat"], [0.0, 1.0], "reward", "train"),  # synthetic
    (["bot", None], [0.0, 1.0], "reward", "train"),  # of unknown source: neither
    ([None, None], [0.0, 1.0], "reward", "train"),
    (["bot"], [1.0], "label", "train"),  # synthetic, unpaired
    (["bot", "bot"], [1.0, None], "reward", "train"),  # synthetic, one measured
    (["human", "human"], [1.0, 0.0], "reward", "eval"),
]
Kind = Literal["golden", "synthetic"]
GOLDEN, SYNTHETIC = ([0, 1], [3, 6, 7])


@pytest.fixture
def records(tmp_path: Path) -> Path:
    rows = [
        {"record_id": f"r{i}", "prompt": [], "responses": ["x"] * len(sources), "sources": sources, "rewards": rewards}
        | {"reward_kind": kind, "split": split, "prompt_hash": i, "schema_version": 3}
        for i, (sources, rewards, kind, split) in enumerate(ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORDS_SCHEMA), tmp_path / "records.parquet")
    return tmp_path / "records.parquet"


def selection(records: Kind) -> RecordSelection:
    return RecordSelection(records=records, golden_sources=["human*"])


@pytest.mark.parametrize(("kind", "expected"), [("golden", GOLDEN), ("synthetic", SYNTHETIC)])
def test_a_record_belongs_to_a_kind_with_all_its_responses(
    records: Path, kind: Literal["golden", "synthetic"], expected: list[int]
) -> None:
    train = pq.read_table(records, filters=[("split", "=", "train")])
    mask = selection(kind).of(train).to_pylist()
    assert [i for i, chosen in enumerate(mask) if chosen] == expected


LABELLED = [  # sources, carried columns; of every labeller a record of the other's responses
    (["bot", "bot"], '{"annotator": "human-3"}'),  # golden by its labeller
    (["human", "human"], '{"annotator": "judge"}'),  # synthetic by its labeller
    (["human", "human"], '{"annotator": null}'),  # no labeller: golden by its responses
    (["human", "bot"], "{}"),  # neither
    (["bot", "bot"], None),  # synthetic by its responses
]


@pytest.mark.parametrize(("kind", "expected"), [("golden", [0, 2]), ("synthetic", [1, 4])])
def test_a_named_labeller_decides_instead_of_the_responses(kind: Literal["golden", "synthetic"], expected: list[int]) -> None:
    sources, extra = zip(*LABELLED, strict=True)
    records = pa.table({"sources": pa.array(sources, pa.list_(pa.string())), "extra": pa.array(extra, pa.string())})
    mask = selection(kind).evolve(labeller="annotator").of(records).to_pylist()
    assert [i for i, chosen in enumerate(mask) if chosen] == expected


def test_without_a_labeller_the_dump_is_that_of_earlier_releases() -> None:
    assert selection("golden").model_dump() == {"records": "golden", "golden_sources": ["human*"]}


def test_records_that_train_have_two_rewards_or_a_label(records: Path) -> None:
    """All of the train split but the tied one and the one with a single reward; of these, one is golden, two are synthetic."""
    assert count_trainable(records) == 6
    assert count_trainable(records, selection("golden")) == 1
    assert count_trainable(records, selection("synthetic")) == 2


def test_a_kind_without_records_is_named_with_the_twin_to_take_out() -> None:
    error = selection("golden").none_found(80)
    assert "none of the 80 training records is golden" in error.message and "human*" in error.message
    assert "take golden_only out of evaluate.twins" in error.hint

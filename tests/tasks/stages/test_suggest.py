"""Stage suggest on a known mixture in which some records have no label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.config.valuation import ExchangeConfig, RaceConfig, TrustConfig
from dora_core.data.response_turns import join_turns
from dora_core.errors import DataError
from dora_core.testbed.mixture import Testbed, TestbedConfig
from infra.store.store import Store
from tasks.runtime.spec import StageRef
from tasks.runtime.stage import execute
from tasks.stages import suggest
from tests.tasks.classified import ingested
from tests.tasks.conftest import GOLDEN
from tests.tasks.facts import assert_round_trip

UNLABELLED = range(0, 200, 7)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, StageRef]:
    folder = tmp_path_factory.mktemp("suggest")
    rows = Testbed(TestbedConfig(prompts=200, responses_per_prompt=3, sources=2, alpha=0.3, one_source_per_record=True)).generate()
    for i in UNLABELLED:
        rows[i]["rewards"] = [None] * 3
    store = Store(str(folder / "store"))
    return store, ingested(store, folder / "data", rows)


def suggested(
    world: tuple[Store, StageRef], number: int = 40, golden: list[str] = GOLDEN, **settings: Any
) -> tuple[list[dict], suggest.Facts]:
    store, records = world
    spec = suggest.Spec(
        records=records,
        calibration=None,
        number=number,
        trust=TrustConfig(),
        exchange=ExchangeConfig(buckets=32, folds=3),
        race=RaceConfig(),
        golden_sources=golden,
        **settings,
    )
    content = execute(spec, suggest.run, store)
    assert_round_trip(content)
    rows = pq.read_table(store.fetch("suggest", spec.digest()) / "suggestions.parquet").to_pylist()
    return rows, suggest.Facts.model_validate(content["facts"])


def records_of(world: tuple[Store, StageRef]) -> dict[str, dict[str, Any]]:
    table = pq.read_table(world[0].fetch("ingest", world[1].digest) / "records.parquet", filters=[("split", "=", "train")])
    return {row["record_id"]: row for row in table.to_pylist()}


@pytest.mark.parametrize("rule", ["information", "committee"])
def test_pairs_of_records_without_a_golden_label_are_ranked(world: tuple[Store, StageRef], rule: Any) -> None:
    rows, facts = suggested(world, rule=rule)
    records = records_of(world)
    free = {i for i, row in records.items() if row["rewards"][0] is None or "human" not in row["sources"]}
    assert [row["rank"] for row in rows] == [*range(1, 41)] and facts.candidates == len(free)
    assert {row["record_id"] for row in rows} <= free and facts.prompts == 40 and facts.suggested == 40
    for row in rows:
        record = records[row["record_id"]]
        if row["source"] is None:
            assert record["rewards"][0] is None and (row["first"], row["trust"]) == (0, None)
        else:
            rewards = record["rewards"]
            assert rewards[row["first"]] == max(rewards) > min(rewards) == rewards[row["second"]] and 0 <= row["trust"] <= 1
    assert sum(facts.sources.values()) == 40 and "no source" in facts.sources
    assert sum(facts.members.values()) == pytest.approx(1.0) and facts.golden_labels > 30
    assert rows == suggested(world, rule=rule)[0]


def test_the_pool_is_bounded_by_hash(world: tuple[Store, StageRef]) -> None:
    rows, facts = suggested(world, number=1000, max_candidates=100)
    assert (facts.candidates, facts.suggested, len(rows)) == (100, 100, 100) and facts.left_out > 10


def test_without_golden_labels_only_texts_can_rank(world: tuple[Store, StageRef]) -> None:
    rows, facts = suggested(world, golden=["nobody"])
    assert len(rows) == 40 and facts.members == {} and "ranked by their texts alone" in facts.warnings[0]
    with pytest.raises(DataError, match="the rule committee needs a race, and 0 prompts have golden labels"):
        suggested(world, golden=["nobody"], rule="committee")


def test_nothing_to_label_is_refused(tmp_path: Path) -> None:
    rows = Testbed(TestbedConfig(prompts=30, responses_per_prompt=2)).generate()
    for row in rows:
        row["sources"] = ["human"] * 2
    store = Store(str(tmp_path / "store"))
    with pytest.raises(DataError, match="no training record is left to label"):
        suggested((store, ingested(store, tmp_path / "data", rows)))


@pytest.mark.parametrize(
    ("responses", "rewards", "expected"),
    [
        (["a", "b", "c"], [0.5, 1.0, 0.0], (1, 2)),
        (["a", "b", "c"], [1.0, 1.0, 0.0], (0, 2)),
        (["a", "b", "c"], [None, 1.0, 0.0], (1, 2)),
        (["a", "a", "c"], [None, None, None], (0, 2)),
        (["a", "b"], [1.0, 1.0], (0, 1)),
        (["a", "a", "b"], [1.0, 0.0, None], (0, 2)),
        (["a", "a"], [1.0, 0.0], None),
        (["a"], [1.0], None),
    ],
)
def test_the_pair_of_a_record(responses: list[str], rewards: list[float | None], expected: tuple[int, int] | None) -> None:
    assert suggest.pair_of(responses, rewards) == expected


def test_trajectories_are_not_suggested(tmp_path: Path) -> None:
    """A label of one could not be read back as a response of several turns."""
    several = join_turns([{"role": role, "content": role} for role in ("assistant", "user", "assistant")])
    rows = [
        {"prompt": [{"role": "user", "content": "q"}], "responses": ["a", last], "rewards": [None, None], "split": "train"}
        for last in (several, "b")
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "records.parquet")
    assert list(suggest._pairs(tmp_path / "records.parquet", np.ones(2, dtype=bool))) == [(1, (0, 1))]

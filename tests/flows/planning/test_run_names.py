"""Names of runs begin with what changed since the project's last run."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from flows.config.models import RealignConfig
from flows.config.run_names import name_of_realignment
from flows.planning.run_names import changed, run_name
from flows.run_record import RunRecord, write_record
from infra.store.store import Store

DAY = date(2026, 11, 30)
PLAIN = "demo · a.jsonl · dpo · dora λ=auto"


def config(**sections: Any) -> RealignConfig:
    return RealignConfig.model_validate({"project": "demo", "data": {"train": [{"path": "/data/a.jsonl"}]}} | sections)


def dumped(**sections: Any) -> dict[str, Any]:
    return config(**sections).model_dump(mode="json", by_alias=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def last_run(store: Store, number: int, **sections: Any) -> None:
    """Write a finished run and make it the project's last."""
    run = RunRecord(
        run_id=f"demo-{number}", project="demo", started=float(number), status="completed", config=dumped(**sections), stages=[]
    )
    write_record(store, run)
    entry = {"digest": "d", "payload": {"stage": "align"}, "run_id": run.run_id}
    before = store.read_json("projects/demo/latest.json") or {"plan": {}}
    store.write_json("projects/demo/latest.json", {"plan": before["plan"] | {f"align {number}": entry}})


def test_a_first_run_says_what_it_is(store: Store) -> None:
    assert name_of_realignment(config()).startswith("demo · a.jsonl")
    assert run_name(store, config(), PLAIN, "brave-otter", DAY) == "demo · 2026-11-30 · a.jsonl · dpo · dora λ=auto"


def test_a_later_run_says_what_changed_since_the_newest(store: Store) -> None:
    last_run(store, 2, align={"optimization": {"learning_rate": 1e-4}})
    last_run(store, 1, align={"optimization": {"learning_rate": 5e-5}})
    now = config(align={"optimization": {"learning_rate": 2e-4}})
    assert run_name(store, now, PLAIN, None, DAY) == "demo · 2026-11-30 · lr 1e-4→2e-4"
    same = config(align={"optimization": {"learning_rate": 1e-4}})
    assert run_name(store, same, PLAIN, None, DAY) == "demo · 2026-11-30 · a.jsonl · dpo · dora λ=auto"


def test_a_typed_name_is_kept(store: Store) -> None:
    last_run(store, 1)
    assert run_name(store, config(), PLAIN, "with more data", DAY) == "with more data"


def test_a_store_that_cannot_be_read_costs_the_changes_alone(store: Store) -> None:
    store.write_json("projects/demo/latest.json", {"plan": {"align": {"digest": 3}}})
    assert run_name(store, config(), PLAIN, None, DAY).endswith("a.jsonl · dpo · dora λ=auto")


@pytest.mark.parametrize(
    ("before", "now", "texts"),
    [
        ({"align": {"loss": {"name": "dpo"}}}, {"align": {"loss": {"name": "simpo"}}}, ["loss dpo→simpo"]),
        ({"classifier": {"epochs": 3.0}}, {"classifier": {"epochs": 5.0}}, ["classifier epochs 3→5"]),
        ({"data": {"train": [{"path": "/d/a.jsonl"}]}}, {"data": {"train": [{"path": "/d/b.jsonl"}]}}, ["data train changed"]),
        ({"policy": {"source": "/models/one"}}, {"policy": {"source": "/models/two"}}, ["policy source one→two"]),
        ({}, {}, []),
    ],
)
def test_what_changed_in_words(before: dict[str, Any], now: dict[str, Any], texts: list[str]) -> None:
    assert changed(dumped(**before), dumped(**now)) == texts


def test_a_name_lists_three_changes(store: Store) -> None:
    last_run(store, 1)
    optimization = {"learning_rate": 0.002, "batch_size": 7, "epochs": 9.0, "seed": 5}
    name = run_name(store, config(align={"optimization": optimization}), PLAIN, None, DAY)
    assert name.endswith(", 1 more") and name.count("→") == 3

"""The last successful run of a project."""

from __future__ import annotations

from pathlib import Path

from flows.planning.latest import read_latest, write_latest
from infra.store.store import Store
from tests.flows.running.planned import Spec, plan_of


def test_stages_that_a_run_did_not_reach_keep_their_entry(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert read_latest(store, "p") == {}
    write_latest(store, plan_of(1, 2), "p-1")
    write_latest(store, plan_of(2), "p-2")
    latest = read_latest(store, "p")
    assert {label: entry.run_id for label, entry in latest.items()} == {"toy 1": "p-1", "toy 2": "p-2"}
    assert latest["toy 1"].ref == Spec(number=1).ref() and latest["toy 1"].payload["number"] == 1
    assert read_latest(store, "q") == {}


def test_an_entry_with_unknown_keys_is_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entry = {"digest": "a" * 64, "payload": {"stage": "ingest"}, "run_id": "p-1", "later": True}
    store.write_json("projects/p/latest.json", {"run_id": "p-1", "plan": {"ingest": entry}})
    assert read_latest(store, "p")["ingest"].ref.stage == "ingest"

"""Ending what a killed run left behind."""

from __future__ import annotations

from typing import Any

import pytest

from flows.run_record import read_record
from flows.running.abandoned import close_manifest, end_abandoned
from infra.ray_jobs import RESUME
from infra.settings import Settings
from infra.store.store import Store
from tests.flows.killed_runs import GONE, process, write_manifest


@pytest.mark.fault(7, 8)
def test_ending_what_was_abandoned_twice_changes_nothing(settings: Settings, ray: Any) -> None:
    write_manifest(settings, "dead", process(False), "dora-align-a-1")
    store = Store(settings.store_uri)
    run = read_record(store, "dead")
    assert run is not None
    assert end_abandoned(settings, store, run, keep=()) == ["dora-align-a-1"]
    close_manifest(store, run, GONE)
    once = store.read_json("runs/dead/run.json") | {"finished": None}
    again = read_record(store, "dead")
    assert again is not None and end_abandoned(settings, store, again, keep=()) == []
    close_manifest(store, again, GONE)
    assert ray.jobs["dora-align-a-1"] == "STOPPED" and store.read_json("runs/dead/run.json") | {"finished": None} == once
    assert once["error"] == {"message": GONE, "hint": RESUME} and once["stages"][0]["state"] == "failed"

"""The Prometheus exporter: scrapes of a real store during a run and afterwards."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from infra.exporter import FAMILIES, StoreCollector, serve
from infra.store.journal import JournalWriter
from infra.store.store import Store

ALIGN, CALIBRATE = "a" * 64, "c" * 64
Scrape = Callable[[], dict[tuple[str, ...], float]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def scrape(store: Store) -> Scrape:
    """One exporter for the whole test; each call is a scrape."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(store))
    return lambda: samples(generate_latest(registry).decode())


def samples(text: str) -> dict[tuple[str, ...], float]:
    """``{(name, label values … in FAMILIES' order): value}`` of Prometheus' text format."""
    families = text_string_to_metric_families(text)
    return {(s.name, *(s.labels[label] for label in FAMILIES[s.name][1])): s.value for family in families for s in family.samples}


def stage(name: str, digest: str, state: str, seconds: float | None = None) -> dict[str, Any]:
    return {"stage": name, "label": name, "digest": digest, "state": state, "seconds": seconds}


def write_run(store: Store, run_id: str, stages: list[dict[str, Any]], *, flow: str = "realign", finished: float | None = None) -> None:
    content = {
        "run_id": run_id,
        "project": run_id.rsplit("-", 3)[0],
        "flow": flow,
        "stages": stages,
        "started": 100.0,
        "finished": finished,
    }
    content |= {"status": "completed" if finished else "running", "decision": "promoted" if finished else None}
    store.write_json(f"runs/{run_id}/run.json", content)


def finish(store: Store, name: str, digest: str, metrics: dict[str, float]) -> None:
    store.mark_done(store.folder(name, digest), {"digest": digest, "metrics": metrics})


def test_a_run_under_way_shows_its_last_step_and_what_is_finished(store: Store, scrape: Scrape) -> None:
    finish(store, "calibrate", CALIBRATE, {"ess": 0.75})
    journal = JournalWriter(store.folder("align", ALIGN))
    journal.metrics(6, {"loss": 0.9, "lambda": 2.0})
    journal.progress(7, 40, "steps")
    journal.flush()
    journal.metrics(7, {"loss": 0.5, "lambda": 1.5})
    journal.progress(8, 40, "steps")
    journal.flush()
    write_run(store, "team-a-20260101-010101-aaaa", [stage("calibrate", CALIBRATE, "ran", 12.5), stage("align", ALIGN, "running")])

    seen = scrape()
    place = ("team-a", "realign")
    assert seen["dora_metrics_up",] == 1
    assert seen["dora_run_status", *place, "running"] == 1
    assert seen["dora_stage_seconds", *place, "calibrate"] == 12.5
    assert seen["dora_stage_metric", *place, "calibrate", "ess"] == 0.75
    assert seen["dora_stage_metric", *place, "align", "loss"] == 0.5
    assert seen["dora_stage_metric", *place, "align", "lambda"] == 1.5
    assert seen["dora_stage_step", *place, "align"] == 7
    assert (seen["dora_stage_done", *place, "align", "steps"], seen["dora_stage_planned", *place, "align", "steps"]) == (8, 40)
    assert not [key for key in seen if key[0] in ("dora_run_end_timestamp_seconds", "dora_run_decision")]


def test_the_end_of_a_run_is_seen_by_the_next_scrape_and_stays(store: Store, scrape: Scrape) -> None:
    run_id = "demo-20260101-010101-aaaa"
    write_run(store, run_id, [stage("align", ALIGN, "running")])
    scrape()
    finish(store, "align", ALIGN, {"loss_last": 0.25})
    write_run(store, run_id, [stage("align", ALIGN, "ran", 3.0)], finished=160.0)

    for _ in range(2):  # the second scrape reads from memory
        seen = scrape()
        assert seen["dora_run_end_timestamp_seconds", "demo", "realign", run_id] == 160
        assert seen["dora_run_decision", "demo", "realign", "promoted"] == 1
        assert seen["dora_stage_metric", "demo", "realign", "align", "loss_last"] == 0.25
        assert seen["dora_stage_state", "demo", "realign", "align", "ran"] == 1


def test_prometheus_gets_it_by_http(store: Store) -> None:
    write_run(store, "demo-20260101-010101-aaaa", [], finished=160.0)
    server, thread = serve(store, "127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            assert samples(answer.read().decode())["dora_run_status", "demo", "realign", "completed"] == 1
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_each_project_and_flow_shows_its_newest_run_only(store: Store, scrape: Scrape) -> None:
    write_run(store, "b-20260101-010101-ffff", [], finished=1.0)
    write_run(store, "b-20260301-010101-0000", [], finished=3.0)
    write_run(store, "b-20260201-010101-9999", [], flow="self-train", finished=2.0)
    write_run(store, "a-b-20260101-010101-1111", [], finished=4.0)

    ended = {key[1:]: value for key, value in scrape().items() if key[0] == "dora_run_end_timestamp_seconds"}
    assert ended == {
        ("b", "realign", "b-20260301-010101-0000"): 3.0,
        ("b", "self-train", "b-20260201-010101-9999"): 2.0,
        ("a-b", "realign", "a-b-20260101-010101-1111"): 4.0,
    }


def test_a_store_that_cannot_be_read_says_so_and_the_next_scrape_tries_again(store: Store, scrape: Scrape) -> None:
    manifest = store.local_root / "runs" / "demo-20260101-010101-aaaa" / "run.json"
    manifest.mkdir(parents=True)  # reading it raises an OSError, as for an unreachable store
    assert scrape() == {("dora_metrics_up",): 0.0}
    manifest.rmdir()
    assert scrape()["dora_metrics_up",] == 1

"""Prometheus metrics of runs, read from the store: ``python -m infra.exporter`` serves them on ``/metrics``.

They complement the metrics of Ray and Prefect, which cover nodes and flow runs but not the computation: progress, step metrics (loss, λ,
tokens per second) and results (effective sample size of h, KL, accuracy) of the newest run of every project and flow.

The exporter reads files that exist in any case: run manifests, results and journals. So it cannot slow or fail a stage, it works for every
placement of a stage and every kind of store, and the metrics of a run stay visible after its processes have ended.

Cost: a scrape lists ``runs/`` and reads the new ones, plus the last journal part of each writer of the running stages. Ended runs and
results never change, so each is read once. None of these files contains prompts or responses.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from dora_core.errors import DoraError
from infra.settings import Settings
from infra.store.journal import ProgressEvent, newest_events
from infra.store.store import Store

PORT = 9464
"""The conventional port of OpenTelemetry's Prometheus exporters."""
RUNS_READ = 200
"""Number of newest runs to read; a project without a run among them is not shown."""

FAMILIES = {
    "dora_run_start_timestamp_seconds": ("Start of the newest run, Unix time.", ("project", "flow", "run_id")),
    "dora_run_end_timestamp_seconds": ("End of the newest run, Unix time; absent while it runs.", ("project", "flow", "run_id")),
    "dora_run_status": ("1 for the newest run's status.", ("project", "flow", "status")),
    "dora_run_decision": ("1 for the newest run's decision about its model.", ("project", "flow", "decision")),
    "dora_stage_state": ("1 for the stage's state in the newest run.", ("project", "flow", "stage", "state")),
    "dora_stage_seconds": ("Duration of the stage, seconds.", ("project", "flow", "stage")),
    "dora_stage_done": ("Units of work done by a running stage.", ("project", "flow", "stage", "unit")),
    "dora_stage_planned": ("Units of work of a running stage in all.", ("project", "flow", "stage", "unit")),
    "dora_stage_step": ("Last optimisation step of a training stage.", ("project", "flow", "stage")),
    "dora_stage_metric": (
        "A metric of the stage by name: its last step's while it runs, then its result's.",
        ("project", "flow", "stage", "metric"),
    ),
    "dora_metrics_up": ("1 if the store could be read for this scrape.", ()),
}
"""Every metric: its help text and its labels."""


class StoreCollector(Collector):
    """Reads the store again for every scrape. An unreadable store yields ``dora_metrics_up 0`` and nothing else."""

    def __init__(self, store: Store):
        self._store = store
        self._ended: dict[str, dict[str, Any]] = {}
        self._results: dict[tuple[str, str], dict[str, float]] = {}
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        return []  # the names are unique, so the registry need not scrape to find clashes

    def collect(self) -> Iterator[Metric]:
        families = {name: GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in FAMILIES.items()}
        with self._lock:
            try:
                for run in self._newest_runs():
                    self._run(families, run)
            except (DoraError, OSError):
                families = {"dora_metrics_up": GaugeMetricFamily("dora_metrics_up", FAMILIES["dora_metrics_up"][0], value=0.0)}
            else:
                families["dora_metrics_up"].add_metric([], 1.0)
        yield from families.values()

    def _run(self, families: dict[str, GaugeMetricFamily], run: dict[str, Any]) -> None:
        where = (run["project"], run["flow"])
        families["dora_run_start_timestamp_seconds"].add_metric([*where, run["run_id"]], run["started"])
        families["dora_run_status"].add_metric([*where, run["status"]], 1.0)
        if run["finished"] is not None:
            families["dora_run_end_timestamp_seconds"].add_metric([*where, run["run_id"]], run["finished"])
        if run["decision"] is not None:
            families["dora_run_decision"].add_metric([*where, run["decision"]], 1.0)
        for stage in run["stages"]:
            place = [*where, stage["label"]]
            families["dora_stage_state"].add_metric([*place, stage["state"]], 1.0)
            if stage["seconds"] is not None:
                families["dora_stage_seconds"].add_metric(place, stage["seconds"])
            metrics, progress, step = self._live(stage) if stage["state"] == "running" else (self._result_metrics(stage), None, None)
            for name, value in metrics.items():
                families["dora_stage_metric"].add_metric([*place, name], value)
            if progress is not None:
                families["dora_stage_done"].add_metric([*place, progress["unit"]], progress["done"])
                families["dora_stage_planned"].add_metric([*place, progress["unit"]], progress["total"])
            if step is not None:
                families["dora_stage_step"].add_metric(place, step)

    def _live(self, stage: dict[str, Any]) -> tuple[dict[str, float], ProgressEvent | None, int | None]:
        """Return the newest step metrics, progress event and step of a running stage."""
        metrics: dict[str, float] = {}
        progress: ProgressEvent | None = None
        step: int | None = None
        for event in newest_events(self._store, stage["stage"], stage["digest"]):
            if event["kind"] == "metrics":
                metrics |= event["values"]
                step = event["step"]
            elif event["kind"] == "progress":
                progress = event
        return metrics, progress, step

    def _result_metrics(self, stage: dict[str, Any]) -> dict[str, float]:
        if stage["state"] not in ("ran", "cached"):
            return {}
        key = stage["stage"], stage["digest"]
        if key not in self._results:
            result = self._store.read_result(*key)
            if result is None:
                return {}
            self._results[key] = result["metrics"]
        return self._results[key]

    def _newest_runs(self) -> Iterator[dict[str, Any]]:
        """Yield the newest run's manifest of each project and flow, among the newest RUNS_READ. Run ids end in date, time, random part."""
        seen: set[tuple[str, str]] = set()
        run_ids = sorted(self._store.list("runs"), key=lambda run_id: run_id.rsplit("-", 3)[1:], reverse=True)[:RUNS_READ]
        self._ended = {run_id: self._ended[run_id] for run_id in run_ids if run_id in self._ended}
        for run_id in run_ids:
            run = self._ended.get(run_id) or self._store.read_json(f"runs/{run_id}/run.json")
            if run is None or "flow" not in run:  # partially written, or of a release that had one flow only
                continue
            if run["finished"] is not None:
                self._ended[run_id] = run
            if (run["project"], run["flow"]) not in seen:
                seen.add((run["project"], run["flow"]))
                yield run


def serve(store: Store, host: str, port: int) -> tuple[WSGIServer, threading.Thread]:
    """Serve ``http://host:port/metrics`` from a new thread; port 0: any free one."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(store))
    return start_http_server(port, addr=host, registry=registry)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on, without authentication (default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="default: %(default)s")
    arguments = parser.parse_args()
    store = Store(Settings().store_uri)
    _, thread = serve(store, arguments.host, arguments.port)
    print(f"metrics of {store.uri} on http://{arguments.host}:{arguments.port}/metrics", flush=True)
    thread.join()


if __name__ == "__main__":
    main()

"""Load of this machine while a run is at work: processor, memory, disk, network and GPU, as MLflow's own monitors measure them.

MLflow's ``SystemMetricsMonitor`` sends what it measures itself, and would wait for a server that is away. Here the samples go through the
:class:`~infra.tracking.tracker.Tracker`, under the same names (``system/…``), which MLflow's pages show on a tab of their own.

Left out: the other machines of a cluster; Ray's dashboard and its Prometheus metrics have them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from infra.tracking.mlflow_import import load_mlflow

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

PREFIX = "system/"
SECONDS = 10.0
"""Shortest interval between two samples, MLflow's own."""
SHARE = 1 / 200
"""The interval grows to this share of the time since the start: about 60 samples in 10 minutes, 600 in 8 hours."""


class SystemMetrics:
    """Samples the machine until it is closed. A monitor that fails is left out.

    Args:
        log: receives metrics by name, and the number of the sample.
    """

    def __init__(self, log: Callable[[Mapping[str, float], int], None]):
        self._log = log
        self._samples = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="system-metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Take no further sample; returns at once where none is under way."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    def sample(self, monitors: list[BaseMetricsMonitor]) -> None:
        """Measure once and log it."""
        values: dict[str, float] = {}
        for monitor in list(monitors):
            try:
                monitor.collect_metrics()
                values |= {f"{PREFIX}{name}": value for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            except Exception as error:  # a driver that went away must not end a run
                monitors.remove(monitor)
                logging.getLogger(__name__).info("%s is left out: %s", type(monitor).__name__, error)
        if values and not self._ended.is_set():
            self._log(values, self._samples)
            self._samples += 1

    def _watch(self) -> None:
        started, available = time.monotonic(), monitors()
        while not self._ended.wait(max(SECONDS, SHARE * (time.monotonic() - started))):
            self.sample(available)


def monitors() -> list[BaseMetricsMonitor]:
    """Return the monitors that work on this machine; the import takes a second or two."""
    load_mlflow()
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    found: list[BaseMetricsMonitor] = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor, ROCMMonitor):
        try:
            found.append(kind())
        except Exception as error:  # no GPU, or its library is not installed
            logging.getLogger(__name__).debug("%s: %s", kind.__name__, error)
    return found

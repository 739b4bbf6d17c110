"""Samples of the machine's load: MLflow's names, numbered samples, and a monitor that fails costs itself alone."""

from __future__ import annotations

from collections.abc import Mapping

from infra.tracking.system_metrics import SystemMetrics, monitors


class Broken:
    """A monitor whose driver has gone away."""

    def collect_metrics(self) -> None:
        raise RuntimeError("NVML: Driver Not Loaded")


def test_samples_have_mlflows_names_and_are_numbered() -> None:
    logged: list[tuple[Mapping[str, float], int]] = []
    load = SystemMetrics(lambda values, step: logged.append((values, step)))
    found = monitors()
    working = len(found)
    found.insert(0, Broken())  # type: ignore[arg-type]
    load.sample(found)
    load.sample(found)
    assert len(found) == working, "the broken one is left out"
    assert [step for _, step in logged] == [0, 1]
    values = logged[1][0]
    assert set(values) >= {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes", "system/disk_usage_megabytes"}
    assert 0 < values["system/system_memory_usage_percentage"] <= 100


def test_nothing_is_logged_after_the_end_and_closing_does_not_wait_for_the_next_sample() -> None:
    logged: list[int] = []
    load = SystemMetrics(lambda values, step: logged.append(step))
    load.start()
    load.close()
    load.sample(monitors())
    assert logged == [] and not load._thread.is_alive()

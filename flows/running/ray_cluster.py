"""The Ray cluster of a run: a given one, or a private head."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from dora_core import plugins
from dora_core.errors import ServiceError
from flows.planning.planned_stage import Plan
from infra.ray_head import RayHead
from infra.ray_jobs import RayJobs
from infra.settings import Places, Settings


@dataclass
class RayCluster:
    """A given cluster, or an own head that starts in the background, is started again if it dies, and is stopped at the end."""

    settings: Settings
    places: Places
    _head: Future[RayHead] | None = None
    _start: Callable[[], RayHead] | None = None

    def warm_up(self, name: str, plan: Plan) -> None:
        """Start the own head now, so that it is up when the first job stage of ``plan`` needs it. Does nothing with a given cluster, or
        for a plan without jobs to run.

        The head offers as many CPUs as the widest stage requests: on a small machine its workers share the cores instead of waiting for
        more of them.
        """
        widths = [s.spec.execution.workers * s.spec.execution.cpus_per_worker for s in plan.to_run if not s.is_local]
        if widths and self.is_own:
            folder = self.settings.ray_folder
            RayHead.stop_orphans(folder)
            cpus = max(math.ceil(max(widths)), os.cpu_count() or 1)
            self._start = partial(RayHead.start, folder / name, num_cpus=cpus)
            self._launch()

    @property
    def is_own(self) -> bool:
        """Whether the cluster is this run's private head."""
        return self.places.ray_dashboard is None

    def jobs(self) -> RayJobs:
        """Return the Jobs API; waits for the own head while it starts, and starts another where it has died.

        Raises:
            ServiceError: the own head did not come up.
        """
        if self._head is None:
            assert self.places.ray_dashboard is not None, "a plan without job stages needs no Ray"
            given = self.places.ray_dashboard, self.places.ray_environment
            return RayJobs(*given, job_environment=plugins.environment(), log_folder=self.settings.log_folder)
        if not self._head.result().alive():
            self._launch()
        head = self._head.result()
        return RayJobs(
            head.dashboard_url,
            head.environment(),
            job_environment=plugins.environment(),
            log_folder=self.settings.log_folder,
            is_alive=head.alive,
        )

    def close(self) -> None:
        if self._head is not None:
            with suppress(ServiceError):  # jobs() has raised it before
                head = self._head.result()
                head.stop()
                shutil.rmtree(head.folder, ignore_errors=True)
            self._head = None

    def _launch(self) -> None:
        assert self._start is not None, "an own head is started by warm_up"
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray-head")
        self._head = pool.submit(self._start)  # start() first ends the processes of a dead head
        pool.shutdown(wait=False)

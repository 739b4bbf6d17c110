"""Runs a stage as a Ray job: stores its spec, then submits the job, or attaches to the one that another run has submitted."""

from __future__ import annotations

from collections.abc import Callable

from infra.ray_jobs import RayJobs
from infra.store.store import ERROR, Store
from tasks.runtime.spec import StageSpec
from tasks.runtime.stage import write_spec


def run_as_job(
    jobs: RayJobs,
    spec: StageSpec,
    store: Store,
    *,
    on_log: Callable[[str], None],
    on_submitted: Callable[[str], None] = lambda submission_id: None,
) -> str:
    """Bring the stage's result into the store; returns the submission id. See :meth:`infra.ray_jobs.RayJobs.run` for its exceptions.

    Args:
        on_log: receives each new line of the job's log.
        on_submitted: receives the submission id as soon as it is known.
    """
    digest = spec.digest()
    return jobs.run(
        stage=spec.stage,
        digest=digest,
        spec_uri=write_spec(spec, store),
        is_done=lambda: spec.is_done(store),
        read_error=lambda: store.read_json(f"{spec.stage}/{digest}/{ERROR}"),
        on_log=on_log,
        on_submitted=on_submitted,
    )

"""Registers the flow with a Prefect server, so that it can be started from its UI, its API or a schedule."""

from __future__ import annotations

import os


def register(api_url: str, pool: str) -> None:
    """Create or update the deployment ``realign/realign`` in a process work pool; safe to repeat.

    The worker imports the flow from the installed package, so nothing is uploaded and the code that runs is the code that is
    installed. Parameters are typed: the UI shows a form, and the server refuses what the configuration does not allow.

    Args:
        api_url: ``http://host:4200/api``.
        pool: name of the work pool; created by its worker.
    """
    os.environ["PREFECT_API_URL"] = api_url
    from prefect.deployments.runner import EntrypointType, RunnerDeployment
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.realign import realign

    with temporary_settings({PREFECT_API_URL: api_url}):
        deployment = RunnerDeployment.from_flow(
            realign,
            name="realign",
            work_pool_name=pool,
            description=realign.__doc__,
            entrypoint_type=EntrypointType.MODULE_PATH,
            tags=["dora"],
        )
        deployment.apply()

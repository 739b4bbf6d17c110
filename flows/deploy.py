"""Registers the flows with a Prefect server, so that they can be started from its UI, its API or a schedule."""

from __future__ import annotations

import os


def register(api_url: str, pool: str) -> None:
    """Create or update the deployments of the flows ``realign``, ``self-train`` and ``study`` in a process work pool; safe to repeat.

    The worker imports a flow from the installed package, so nothing is uploaded and the code that runs is the code that is
    installed. Parameters are typed: the UI shows a form, and the server refuses what the configuration does not allow.

    Args:
        api_url: ``http://host:4200/api``.
        pool: name of the work pool; created by its worker.
    """
    os.environ["PREFECT_API_URL"] = api_url
    from prefect.deployments.runner import EntrypointType, RunnerDeployment
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.realign import realign
    from flows.self_train import self_train
    from flows.study import study

    with temporary_settings({PREFECT_API_URL: api_url}):
        for flow in (realign, self_train, study):
            deployment = RunnerDeployment.from_flow(
                flow,
                name=flow.name,
                work_pool_name=pool,
                description=flow.__doc__,
                entrypoint_type=EntrypointType.MODULE_PATH,
                tags=["dora"],
            )
            deployment.apply()

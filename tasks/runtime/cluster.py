"""Connection of a stage's process to its Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dora_core.config.execution import Execution
from dora_core.environment import variable
from dora_core.errors import ServiceError


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect this process to the cluster that runs its job, and disconnect at the end.

    The Jobs API sets ``RAY_ADDRESS`` for every job; token authentication comes with the environment of the head. A process that is already
    connected (an outer session, a test's ``ray.init(address="local")``) keeps its connection. This function never starts a cluster: a bare
    ``ray.init()`` would attach to any head on the machine, or start one that is never stopped.

    Workers set their threads themselves (:func:`tasks.runtime.workers.use_threads`).

    Raises:
        ServiceError: no cluster was named, or it refuses the connection (not reachable, wrong token).
    """
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        yield
        return
    if variable("RAY_ADDRESS") is None:
        raise ServiceError(
            "this stage needs a Ray cluster and RAY_ADDRESS is not set",
            hint="run it through `dora`, which submits it to a cluster, or set execution.default.workers=0 to stay in one process",
            retryable=False,
        )
    try:
        ray.init(address="auto", logging_level="WARNING")
    except (ConnectionError, RuntimeError, RayError) as error:
        raise ServiceError(
            f"the Ray cluster at {os.environ['RAY_ADDRESS']} refuses a connection: {str(error).strip().splitlines()[0]}",
            hint="see `dora doctor`; a head with token authentication needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH in this process",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def check_fits(execution: Execution) -> None:
    """Refuse a worker that fits on no node; Ray would wait forever.

    Raises:
        ServiceError: with the needs of the worker and the resources of the nodes.
    """
    import ray

    sizes = [(n["Resources"].get("CPU", 0.0), n["Resources"].get("GPU", 0.0)) for n in ray.nodes() if n["Alive"]]
    if not any(cpu >= execution.cpus_per_worker and gpu >= execution.gpus_per_worker for cpu, gpu in sizes):
        have = ", ".join(f"{cpu:g} CPUs and {gpu:g} GPUs" for cpu, gpu in sizes)
        raise ServiceError(
            f"a worker needs {execution.cpus_per_worker:g} CPUs and {execution.gpus_per_worker:g} GPUs on one node; the cluster has {have}",
            hint="lower cpus_per_worker or gpus_per_worker in the stage's section of execution, or use a bigger cluster",
            retryable=False,
        )

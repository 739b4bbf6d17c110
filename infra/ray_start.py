"""Start of a Ray head beyond its command line; Ray calls :func:`prepare` before it starts anything (its ``RAY_START_HOOK``).

Two things have no option in Ray 2.60: to leave out the client server (``ray://``), which ends a head if it cannot register within 30 s and
which nothing here uses; and the 30 s in which the raylet has to register, too few on a busy machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dora_core.environment import variable

HOOK = "infra.ray_start.prepare"
PATIENCE = "DORA_RAY_PATIENCE_SECONDS"
"""Environment variable, set by ``infra/ray_head.py``: longest wait for the raylet."""
CLIENT_SERVER = "DORA_RAY_CLIENT_SERVER"
"""Environment variable: ``1`` keeps the client server, for ``ray.init("ray://…")`` of one's own."""
PAUSE_SECONDS = 0.5
WORKER_SECONDS = 300
"""Longest wait for a worker's process, whose death a running job would notice that late; Ray's own is 60."""


def waits(seconds: float) -> dict[str, str]:
    """Return the environment in which every wait of a starting head lasts ``seconds``."""
    whole = str(max(1, int(seconds)))
    return {
        "RAY_START_HOOK": HOOK,
        PATIENCE: whole,
        "RAY_gcs_server_port_wait_time_s": whole,
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": whole,
        "RAY_agent_register_timeout_ms": f"{whole}000",
        "RAY_worker_register_timeout_seconds": str(min(int(whole), WORKER_SECONDS)),
    }


def prepare(parameters: Any, head: bool) -> None:
    """Change the parameters of a node before it starts. Ray sets the signature.

    Args:
        parameters: ``ray._private.parameter.RayParams``.
        head: whether it is the head.
    """
    if not head:
        return
    if variable(CLIENT_SERVER) != "1":
        parameters.ray_client_server_port = None
    from ray._private import services

    services.get_node = patient(services.get_node, float(variable(PATIENCE) or 0.0))


def patient(get_node: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """Return ``get_node``, which raises RuntimeError while a raylet has not registered, as a function that waits for it."""

    def wait(*arguments: Any, **options: Any) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return get_node(*arguments, **options)
            except RuntimeError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(PAUSE_SECONDS)

    return wait

"""Name of the flow run that begins in this process: a person's own, or what changed since the project's last run."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import TypeVar

from prefect.runtime import flow_run as this_run

from flows.config.models import MethodConfig
from flows.planning.run_names import run_name
from infra.settings import Settings
from infra.store.store import Store

Configuration = TypeVar("Configuration", bound=MethodConfig)


def naming(describe: Callable[[Configuration], str]) -> Callable[[Configuration], str]:
    """Return the function that names a run of a configuration.

    Args:
        describe: says what a run is, with the project first (``flows/config/run_names.py``).
    """

    def name(config: Configuration) -> str:
        return run_name(Store(Settings().store_uri), config, describe(config), this_run.name, date.today())

    return name

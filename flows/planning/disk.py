"""Refusal of trainings whose models the store's disk cannot hold, before anything runs.

Only what is certain is refused: every training of a policy in a local folder writes a merged model of that folder's size. Adapters,
checkpoints, samples and tables come on top, and a full disk in the middle of a run loses nothing (``infra/store/store.py``).
"""

from __future__ import annotations

import shutil
from collections.abc import Collection

from dora_core.errors import ConfigError
from flows.config.models import RealignConfig
from flows.planning.memory import policy_size, trainings
from infra.settings import Settings
from infra.store.store import Store

GB = 10**9


def refuse_full_disk(config: RealignConfig, running: Collection[str], store: Store, free: int | None = None) -> None:
    """Refuse a run whose trained models need more than the free space of the disk that the store, or its cache, is on.

    Args:
        running: stages that are not cached, one name for each training.
        free: free space there in bytes; None: looked up, and nothing is refused where neither store nor Ray is on this machine.

    Raises:
        ConfigError: the number of models, their size, what is free, and what lowers it.
    """
    models = sum(stage in trainings(config) for stage in running)
    if not models or (size := policy_size(config)) is None:
        return
    if free is None:
        if store.remote is not None and Settings().ray_address is not None:
            return
        free = shutil.disk_usage(store.local_root).free
    needed = models * size.parameters * size.stored_bytes
    if needed > free:
        raise ConfigError(
            f"the {models} models that this run trains take {needed / GB:,.1f} GB, and {free / GB:,.1f} GB are free on the disk of "
            f"{store.local_root}",
            hint="free space there (`dora gc` lists what can be deleted), move DORA_HOME, DORA_STORE or DORA_CACHE to a larger disk, or "
            "leave out evaluate.twins",
        )

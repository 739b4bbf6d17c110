"""Refusal of trainings whose models the store's disk cannot hold, before anything runs.

Only what is certain is refused: every training of a policy in a local folder ends with a model of that folder's size, or with adapters.
Checkpoints, samples and tables come on top, and a full disk in the middle of a run loses nothing (``infra/store/store.py``).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from dora_core.errors import ConfigError
from dora_core.training.memory_estimate import ModelSize
from flows.config.models import RealignConfig
from infra.store.store import Store

GB = 10**9


def refuse_full_disk(config: RealignConfig, running: Iterable[str], store: Store, free: int | None = None) -> None:
    """Refuse a run whose trained models need more than the free space of the disk that the store, or its cache, is on.

    Args:
        running: stages that are not cached, one name for each training.
        free: free space there in bytes; None: looked up.

    Raises:
        ConfigError: the number of models, their size, what is free, and what lowers it.
    """
    if config.policy.is_tiny or (size := ModelSize.of_folder(Path(config.policy.source).expanduser())) is None:
        return
    optimizations = {"align": config.align.optimization} | ({"sft": config.sft.optimization} if config.sft.enabled else {})
    sizes = [
        (lora.rank * size.linear_edges if (lora := optimizations[stage].lora) and lora.result == "adapter" else size.parameters)
        * size.stored_bytes
        for stage in running
        if stage in optimizations
    ]
    free = shutil.disk_usage(store.local_root).free if free is None else free
    if sizes and sum(sizes) > free:
        raise ConfigError(
            f"the {len(sizes)} models that this run trains take {sum(sizes) / GB:,.1f} GB, and {free / GB:,.1f} GB are free on the disk of "
            f"{store.local_root}",
            hint="free space there (`dora gc` lists what can be deleted), move DORA_HOME or DORA_STORE to a larger disk, leave out "
            "evaluate.twins, or keep adapters alone (optimization.lora.result: adapter)",
        )

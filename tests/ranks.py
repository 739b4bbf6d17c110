"""Processes of one gloo group on this machine."""

from __future__ import annotations

import faulthandler
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dora_core.training.distributed import Worker

RANKS = 2


def run_ranks(work: Callable[..., None], *arguments: Any) -> None:
    """Call ``work(worker, *arguments)``, a function of a module, in :data:`RANKS` processes of one group; returns when all have ended.

    The parent holds the store of the group, so no process takes it along when it ends first.

    Raises:
        AssertionError: a process ended by a signal: with the last lines that each process wrote.
        torch.multiprocessing.ProcessRaisedException: ``work`` raised.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as said:
        try:
            mp.spawn(_main, (store.port, said, work, arguments), nprocs=RANKS)
        except mp.ProcessExitedException as error:
            last = "\n".join(f"{file.name}: {file.read_text(errors='replace')[-3000:]}" for file in sorted(Path(said).iterdir()))
            raise AssertionError(f"{error}\n{last}") from error


def _main(rank: int, port: int, said: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with (Path(said) / f"rank {rank}").open("w") as file:
        os.dup2(file.fileno(), 2)
    faulthandler.enable()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.TCPStore("127.0.0.1", port, is_master=False), rank=rank, world_size=RANKS)
    work(Worker.current(), *arguments)
    dist.barrier()  # whoever leaves first closes its connections
    dist.destroy_process_group()

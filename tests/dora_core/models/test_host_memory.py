"""Memory of freed tensors goes back to the system."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from dora_core.models.host_memory import release_freed_memory

MIB = 2**20


def resident() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_tensors_are_returned() -> None:
    release_freed_memory()
    before = resident()
    # A freed block of 32 MiB teaches glibc to keep blocks of that size; one that stays above the others keeps them in the heap.
    large = [torch.ones(31 * MIB // 4) for _ in range(2)]
    del large
    blocks = [torch.ones(16 * MIB // 4) for _ in range(16)]
    last = torch.ones(1024)
    assert resident() - before > 200 * MIB
    del blocks
    release_freed_memory()
    assert resident() - before < 40 * MIB and last.sum() == 1024


def test_it_may_be_called_at_any_time() -> None:
    release_freed_memory()
    release_freed_memory()

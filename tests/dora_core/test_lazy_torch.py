"""torch is imported at the first use of an attribute, and is the real one."""

from __future__ import annotations

import subprocess
import sys

import torch

from dora_core import lazy_torch


def test_attributes_are_those_of_torch() -> None:
    assert lazy_torch.torch.float64 is torch.float64
    assert lazy_torch.torch.logsumexp is torch.logsumexp
    values = torch.tensor([-2.0, 0.0, 3.0])
    assert lazy_torch.logsigmoid(values).equal(torch.nn.functional.logsigmoid(values))


def test_torch_is_loaded_at_its_first_use() -> None:
    program = (
        "import sys; from dora_core.lazy_torch import torch; import dora_core.losses, dora_core.objectives\n"
        "before = 'torch' in sys.modules\n"
        "torch.ones(1)\n"
        "print(before, 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False True\n"

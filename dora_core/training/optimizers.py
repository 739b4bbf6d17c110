"""AdamW over a module's trained weights, with moments in float32 or in 8 bits.

The 8-bit moments are torchao's (``optimization.optimizer: adamw_8bit``, extra ``quantised``): block-wise quantised (arXiv 2110.02861), two
bytes a weight in place of eight. A weight with fewer than 4,096 values, or a number of them that 256 does not divide, keeps float32
moments; of a sharded weight that is decided by the rank's part. So a checkpoint is of its number of ranks.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from dora_core.config.method import OptimizationConfig
from dora_core.errors import ConfigError
from dora_core.training.device_memory import adamw


def make_optimizer(module: nn.Module, config: OptimizationConfig) -> torch.optim.Optimizer:
    """The configured optimiser, its state allocated.

    Raises:
        ConfigError: it needs torchao, which is not installed.
    """
    if config.optimizer == "adamw":
        return adamw(module, config)
    require_8bit(config)
    from torchao.optim import AdamW8bit

    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer = AdamW8bit(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    for p in trained:  # as its first step would: a checkpoint is loaded into it
        moments = {"exp_avg": optimizer._new_buffer(p, True), "exp_avg_sq": optimizer._new_buffer(p, False)}  # type: ignore[attr-defined]
        optimizer.state[p] = {"step": torch.tensor(0.0), **moments}
    return optimizer


def require_8bit(config: OptimizationConfig, key: str = "optimization") -> None:
    """Raise ConfigError if the configured optimiser is not installed."""
    if config.optimizer == "adamw_8bit" and importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            f"{key}.optimizer=adamw_8bit needs torchao, which is not installed here",
            hint=f'run pip install "dora-realign[quantised]" where training runs, or set {key}.optimizer to adamw',
        )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set it for the next step; torchao's is a tensor, so that its compiled step is not made anew."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def moment_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Memory of this rank's moments."""
    local = [m.to_local() if isinstance(m, DTensor) else m for state in optimizer.state.values() for m in state.values()]
    parts = [[getattr(m, name) for name in ("codes", "scale")] if hasattr(m, "codes") else [m] for m in local if m.dim()]
    return sum(part.numel() * part.element_size() for of_one in parts for part in of_one)

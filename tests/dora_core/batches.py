"""Preference batches for the tests of the losses."""

from __future__ import annotations

import math

import torch

from dora_core.losses import LOSSES, PreferenceBatch, PreferenceLoss, parse_loss

NAN = math.nan

VARIANTS: dict[str, PreferenceLoss] = {name: parse_loss(name) for name in sorted(LOSSES)}
"""Every built-in loss with its defaults, and every pairwise one on all pairs."""
VARIANTS |= {f"{n} on all pairs": parse_loss({"name": n, "pairs": "all"}) for n in sorted(LOSSES) if "pairs" in LOSSES[n].model_fields}


def batch_of(
    policy: list[list[float]],
    rewards: list[list[float]],
    reference: list[list[float]] | None = None,
    lengths: list[list[float]] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    garbage: float = -1e30,
) -> PreferenceBatch:
    """Ragged lists → a padded batch; padding carries garbage on purpose, a loss must never read it. Lengths default to 4 tokens."""
    width = max(map(len, policy))

    def pad(rows: list[list[float]], fill: float) -> torch.Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=dtype)

    reference = reference or [[0.0] * len(row) for row in policy]
    lengths = lengths or [[4.0] * len(row) for row in policy]
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in policy])
    return PreferenceBatch(pad(policy, garbage), pad(reference, 7.0), pad(lengths, 0.0), pad(rewards, 99.0), mask)

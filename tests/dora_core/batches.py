"""Preference batches for the tests of the losses: by hand, and drawn by hypothesis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dora_core.losses import LOSSES, PreferenceBatch, PreferenceLoss, parse_loss

NAN = math.nan

OF_A_RECORD = sorted(name for name, loss in LOSSES.items() if not (loss.matches_records or loss.reads_collisions))
VARIANTS: dict[str, PreferenceLoss] = {name: parse_loss(name) for name in OF_A_RECORD}
"""Every built-in loss of a record's log-probabilities with its defaults, and every pairwise one on all pairs."""
VARIANTS |= {f"{n} on all pairs": parse_loss({"name": n, "pairs": "all"}) for n in sorted(LOSSES) if "pairs" in LOSSES[n].model_fields}


def batch_of(
    policy: list[list[float]],
    rewards: list[list[float]],
    reference: list[list[float]] | None = None,
    lengths: list[list[float]] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    garbage: float = -1e30,
    unpaired: list[bool] | None = None,
) -> PreferenceBatch:
    """Ragged lists → a padded batch; padding carries garbage on purpose, a loss must never read it. Lengths default to 4 tokens."""
    width = max(map(len, policy))

    def pad(rows: list[list[float]], fill: float) -> torch.Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=dtype)

    reference = reference or [[0.0] * len(row) for row in policy]
    lengths = lengths or [[4.0] * len(row) for row in policy]
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in policy])
    tensors = pad(policy, garbage), pad(reference, 7.0), pad(lengths, 0.0), pad(rewards, 99.0), mask
    return PreferenceBatch(*tensors) if unpaired is None else PreferenceBatch(*tensors, torch.tensor(unpaired))


def value(loss: Any, *columns: Any) -> float:
    """ℓ of a batch with a single record, given like :func:`batch_of`."""
    return parse_loss(loss)(batch_of(*columns)).item()


def softplus(x: float) -> float:
    """−log σ(−x)."""
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def for_all(**arguments: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``given`` with the same few examples in every run: there are many losses."""
    return lambda test: settings(max_examples=20)(given(**arguments)(test))


@st.composite
def ragged(draw: st.DrawFn, most: int = 5) -> PreferenceBatch:
    """One to three records of 2 to ``most`` responses with distinct rewards."""
    sizes = draw(st.lists(st.integers(2, most), min_size=1, max_size=3))

    def column(values: st.SearchStrategy[float]) -> list[list[float]]:
        return [draw(st.lists(values, min_size=n, max_size=n)) for n in sizes]

    rewards = [draw(st.lists(st.integers(-9, 9).map(float), min_size=n, max_size=n, unique=True)) for n in sizes]
    return batch_of(column(st.floats(-30, 0)), rewards, column(st.floats(-30, 0)), column(st.integers(1, 40).map(float)))


def shifted(batch: PreferenceBatch, by: float) -> PreferenceBatch:
    return PreferenceBatch(batch.policy_logps_BN + by, batch.reference_logps_BN, batch.lengths_BN, batch.rewards_BN, batch.mask_BN)


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

"""Losses on pairs of one preferred and one other response, also taken from longer lists. Shape legend in ``base.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dora_core.lazy_torch import torch
from dora_core.losses.base import PreferenceBatch, PreferenceLoss

if TYPE_CHECKING:
    from torch import Tensor


class PairwiseLoss(PreferenceLoss):
    """ℓ = f(s_w, s_l) of a score s per response; ``pairs`` selects the pairs of a longer list.

    A subclass implements ``of_pair`` (f), and ``scores`` (s) where it is not β·lr. ``best_worst``: one pair per record. ``all``: the
    mean over the record's strict preferences, so that ℓ keeps its scale and offset however long the list is.
    """

    beta: float = Field(0.1, gt=0, le=100, description="β: strength of the pull towards the reference.")
    pairs: Literal["best_worst", "all"] = Field(
        "best_worst", description="Which pairs of a list count: best_worst: one; all: the mean over all strict preferences."
    )

    @property
    def reads_pairs_only(self) -> bool:
        return self.pairs == "best_worst"

    def scores(self, batch: PreferenceBatch) -> Tensor:
        """Score s of every response, (B, N)."""
        return self.beta * batch.log_ratios_BN

    def of_pair(self, winner: Tensor, loser: Tensor) -> Tensor:
        """Compute f elementwise; the arguments broadcast against each other."""
        raise NotImplementedError

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        scores_BN = torch.where(batch.measured_BN, self.scores(batch), 0.0)
        if self.pairs == "best_worst":
            return self.of_pair(batch.of_best(scores_BN), batch.of_worst(scores_BN))
        losses_BNN = self.of_pair(scores_BN[:, :, None], scores_BN[:, None, :])
        pairs_B = batch.beats_BNN.sum(dim=(1, 2)).clamp(min=1)
        return torch.where(batch.beats_BNN, losses_BNN, 0.0).sum(dim=(1, 2)) / pairs_B


class MarginLoss(PairwiseLoss):
    """ℓ = f(s_w − s_l). A subclass implements ``of_margin`` (f)."""

    def of_margin(self, margin: Tensor) -> Tensor:
        """Compute f elementwise."""
        raise NotImplementedError

    def of_pair(self, winner: Tensor, loser: Tensor) -> Tensor:
        return self.of_margin(winner - loser)

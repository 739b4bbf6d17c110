"""Losses on pairs of one preferred and one other response, also taken from longer lists. Shape legend in ``base.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dora_core.lazy_torch import torch
from dora_core.losses.base import PreferenceBatch, PreferenceLoss

if TYPE_CHECKING:
    from torch import Tensor


class PairwiseLoss(PreferenceLoss):
    """ℓ = f(s_w, s_l) of a score s per response; ``pairs`` selects the pairs of a longer list.

    A subclass implements ``of_pair`` (f), and ``scores`` (s) where it is not β·lr. ``best_worst``: one pair per record. ``all``: the
    mean over the record's strict preferences, so that ℓ keeps its scale and offset however long the list is.

    *Soft labels*: where a record's label is right with probability q (``batch.label_probability_B``), ℓ is its expectation
    q·f(s_w, s_l) + (1 − q)·f(s_l, s_w), of a margin loss q·ℓ(m) + (1 − q)·ℓ(−m). That is cdpo's form, with ε = 1 − q by record.
    """

    reads_label_probability: ClassVar[bool] = True

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

    def of_labelled(self, winner: Tensor, loser: Tensor, batch: PreferenceBatch) -> Tensor:
        """Expected f of pairs, (B,) or (B, N, N), over whether each record's label is right; f itself where it is certain."""
        right = self.of_pair(winner, loser)
        return right if batch.label_probability_B is None else batch.mixed(right, self.of_pair(loser, winner))

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        scores_BN = torch.where(batch.measured_BN, self.scores(batch), 0.0)
        if self.pairs == "best_worst":
            return self.of_labelled(batch.of_best(scores_BN), batch.of_worst(scores_BN), batch)
        return mean_over_pairs(self.of_labelled(scores_BN[:, :, None], scores_BN[:, None, :], batch), batch)


def mean_over_pairs(values_BNN: Tensor, batch: PreferenceBatch) -> Tensor:
    """Mean of ``values_BNN[b, i, j]`` over the pairs in which response i has the larger reward, (B,); 0 for a record without any."""
    pairs_B = batch.beats_BNN.sum(dim=(1, 2)).clamp(min=1)
    return torch.where(batch.beats_BNN, values_BNN, 0.0).sum(dim=(1, 2)) / pairs_B


class MarginLoss(PairwiseLoss):
    """ℓ = f(s_w − s_l). A subclass implements ``of_margin`` (f)."""

    def of_margin(self, margin: Tensor) -> Tensor:
        """Compute f elementwise."""
        raise NotImplementedError

    def of_pair(self, winner: Tensor, loser: Tensor) -> Tensor:
        return self.of_margin(winner - loser)

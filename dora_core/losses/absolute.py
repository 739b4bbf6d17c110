"""Losses that place each response of a pair against the reference by itself: their zero is at lr = 0, not at a zero margin.

They need both responses of a pair (unlike ``binary.py``, whose terms also read single labelled responses), and are not invariant to a
constant on all log-ratios of a record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from dora_core.lazy_torch import logsigmoid
from dora_core.losses.base import register_loss
from dora_core.losses.pairwise import PairwiseLoss

if TYPE_CHECKING:
    from torch import Tensor


@register_loss
class NCA(PairwiseLoss):
    """ℓ = −log σ(s_w) − ½ log σ(−s_w) − ½ log σ(−s_l), s = β·lr — NCA for pairs, arXiv 2402.05369.

    Noise-contrastive alignment with K = 2 responses at the limit of a sharp reward (its softmax weight of the winner is 1); TRL's
    ``nca_pair``. The minimum lies at σ(s_w) = ⅔, so the winner's likelihood rises by a finite amount instead of falling with the loser's.
    """

    name: Literal["nca"] = "nca"

    offset: ClassVar[str] = "ℓ > 1.5 log 3 − log 2 = .95, approached at s_w = log 2, s_l → −∞; 2 log 2 at the reference"

    def of_pair(self, winner: Tensor, loser: Tensor) -> Tensor:
        return -logsigmoid(winner) - (logsigmoid(-winner) + logsigmoid(-loser)) / 2


@register_loss
class APOZero(PairwiseLoss):
    """ℓ = 1 − σ(s_w) + σ(s_l), s = β·lr — APO-zero, arXiv 2408.06266, equation 7.

    For winners better than what the policy writes: raises the winner, lowers the loser. The paper leaves out the constant 1. Twice ``kto``
    at z0 = 0 and equal weights.
    """

    name: Literal["apo_zero"] = "apo_zero"

    offset: ClassVar[str] = "0 < ℓ < 2; 1 at the reference, 0 for a perfectly separated pair"

    def of_pair(self, winner: Tensor, loser: Tensor) -> Tensor:
        return (-winner).sigmoid() + loser.sigmoid()


@register_loss
class APODown(PairwiseLoss):
    """ℓ = σ(s_w) + 1 − σ(s_w − s_l), s = β·lr — APO-down, arXiv 2408.06266, equation 8.

    For winners worse than what the policy writes: lowers both, the loser more. The paper leaves out the constant 1.
    """

    name: Literal["apo_down"] = "apo_down"

    offset: ClassVar[str] = "0 < ℓ < 2; 1 at the reference, 0 as s_w → −∞ with s_l far below it"

    def of_pair(self, winner: Tensor, loser: Tensor) -> Tensor:
        return winner.sigmoid() + (loser - winner).sigmoid()

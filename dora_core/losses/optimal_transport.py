"""Losses on the distribution of a quantity over records instead of on each record.

They couple the records of an optimisation step. Their gradient needs the other records only through ranks, so it is exact over all ranks
and micro-batches once every record's quantity is known: alignment computes these first, in a forward pass without gradient (none is added
where a rank has a single micro-batch), and gives each record its partner (``batch.partners_B2``). With dropout in the adapters the
quantities of that pass differ from those of the gradient's pass by the dropout's noise.

Shape legend: B records of a batch, n records of the step that train.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dora_core.lazy_torch import logsigmoid, torch
from dora_core.losses.base import PreferenceBatch, PreferenceLoss, register_loss

if TYPE_CHECKING:
    from torch import Tensor


@register_loss
class AOT(PreferenceLoss):
    """mean_k −log σ(β(u_(k) − v_(k))), k-th smallest of each over the step — Alignment via Optimal Transport, arXiv 2406.05882.

    First-order stochastic dominance of u over v, with the logistic cost of the paper's violation penalty; sorting solves the transport in
    one dimension. ``margins``, for pairs of one prompt: u = log π(y_w) − log π(y_l), v the same of the reference (TRL's ``aot``).
    ``responses``, where winners and losers need not belong together: u = lr_w, v = lr_l (TRL's ``aot_unpaired``). Both depend on the
    policy; a record's ℓ is the mean of the two matches of its responses, its gradient their sum, so that the mean over records has the
    value and the gradient of the formula. Matching is over the whole optimisation step, in other code bases over a micro-batch of a rank.
    Under another objective than ``erm`` a record's ℓ is weighed by itself, which the paper does not consider.
    """

    matches_records: ClassVar[bool] = True

    name: Literal["aot"] = "aot"
    beta: float = Field(0.1, gt=0, le=100, description="β: strength of the pull towards the reference.")
    matching: Literal["margins", "responses"] = Field(
        "margins", description="margins: of the policy against those of the reference; responses: preferred ones against the others."
    )

    offset: ClassVar[str] = "ℓ > 0; log 2 at the reference with matching margins; differs by record with responses"

    @property
    def reads_pairs_only(self) -> bool:
        return True

    def quantities(self, batch: PreferenceBatch) -> Tensor:
        """u and v of every record, (B, 2)."""
        if self.matching == "responses":
            return torch.stack([batch.of_best(batch.log_ratios_BN), batch.of_worst(batch.log_ratios_BN)], dim=1)
        logps = [torch.where(batch.mask_BN, logps_BN, 0.0) for logps_BN in (batch.policy_logps_BN, batch.reference_logps_BN)]
        return torch.stack([batch.of_best(logps_BN) - batch.of_worst(logps_BN) for logps_BN in logps], dim=1)

    def match(self, quantities_n2: Tensor) -> Tensor:
        """Partners of all records of a step, (n, 2): the v that has the rank of the record's u, and the u that has the rank of its v."""
        order_n2 = quantities_n2.argsort(dim=0, stable=True)
        sorted_n2 = quantities_n2.gather(0, order_n2)
        return torch.zeros_like(quantities_n2).scatter(0, order_n2, sorted_n2.flip(1))

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        own_B2 = self.quantities(batch)
        partners_B2 = batch.partners_B2
        if partners_B2 is None:
            partners_B2 = torch.zeros_like(own_B2)
            partners_B2[batch.trains_B] = self.match(own_B2.detach()[batch.trains_B])
        up_B = -logsigmoid(self.beta * (own_B2[:, 0] - partners_B2[:, 0]))
        if self.matching == "margins":
            return up_B
        down_B = -logsigmoid(self.beta * (partners_B2[:, 1] - own_B2[:, 1]))
        both_B = up_B + down_B
        return both_B - both_B.detach() / 2

"""Weighted sums of losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from dora_core.losses.base import PreferenceBatch, PreferenceLoss, parse_loss, register_loss
from dora_core.losses.nested import NestedLoss, stands_alone
from dora_core.strict_model import StrictModel

if TYPE_CHECKING:
    from torch import Tensor


OF_THE_PAPER = (("dpo", 0.8), ("bco", 0.2), ("sft", 1.0))


class LossPart(StrictModel):
    """One summand."""

    loss: NestedLoss = Field(description="A registered loss and its parameters.")
    weight: float = Field(1.0, gt=0, le=1000, description="Its weight in the sum.")


@register_loss
class MPO(PreferenceLoss):
    """ℓ = Σ_k w_k·ℓ_k — Mixed Preference Optimization, arXiv 2411.10442; the default parts and weights are the paper's.

    Preference (dpo), quality (bco) and generation (sft). bco is at a fixed reference point here (``binary.py``), and the paper's sft term
    is the mean over tokens, as here. Each part keeps its own parameters; a part whose ℓ needs more than the record itself (lcpo, wpo, aot,
    dpo_pro) is refused.
    """

    name: Literal["mpo"] = "mpo"
    parts: list[LossPart] = Field(
        default_factory=lambda: [LossPart(loss=parse_loss(name), weight=weight) for name, weight in OF_THE_PAPER],
        min_length=1,
        max_length=16,
        description="The losses and their weights: [{loss: {name: dpo}, weight: 0.8}, …].",
    )

    offset: ClassVar[str] = "the weighted sum of those of its parts; with the default parts log 2 + nats per token at the reference"

    @model_validator(mode="after")
    def _check(self) -> MPO:
        if refused := [part.loss.name for part in self.parts if not stands_alone(part.loss)]:
            raise ValueError(f"{', '.join(refused)} cannot be a part of mpo: it needs more than the record itself; use it as align.loss")
        return self

    @property
    def nested(self) -> list[PreferenceLoss]:
        return [part.loss for part in self.parts]

    @property
    def reads_pairs_only(self) -> bool:
        return all(part.loss.reads_pairs_only for part in self.parts)

    @property
    def reads_label_probability(self) -> bool:  # type: ignore[override]  # depends on the parts
        return all(part.loss.reads_label_probability for part in self.parts)

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        first, *others = (part.weight * part.loss(batch) for part in self.parts)
        return sum(others, start=first)

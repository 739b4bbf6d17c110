"""Expectation maximisation over latent labels: whether a record's label is right is a hidden variable, inferred from the policy itself."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from dora_core.lazy_torch import torch
from dora_core.losses.base import PreferenceBatch, PreferenceLoss, register_loss
from dora_core.losses.nested import LossOnBase, stands_alone

if TYPE_CHECKING:
    from torch import Tensor


@register_loss
class LCPO(LossOnBase):
    """ℓ = sg(w)·ℓ₁ + (1 − sg(w))·ℓ₀, w = (1−η)p/((1−η)p + η(1−p)), p = σ(ℓ₀ − ℓ₁) — LCPO (later RE-PO), arXiv 2509.24159.

    ℓ₁ is the base loss of the record as it is labelled, ℓ₀ with its order reversed; for dpo ℓ₀ − ℓ₁ = m, so p = σ(m), and in general p is
    the paper's e^{−ℓ₁}/(e^{−ℓ₁} + e^{−ℓ₀}). η is the chance of a wrong label (the paper's η is 1 − ours), of each source by itself; a
    record's is the mean over its responses' sources (the paper has one per annotator). Alignment estimates it (``noise_rates.py``):
    η ← memory·η + (1 − memory)·mean(1 − w) over a step's records, at most ½. The burn-in is ours: until the policy has margins w = 1, the
    base loss; at the reference p = ½, and w = 1 − η says nothing.
    """

    estimates_noise: ClassVar[bool] = True

    name: Literal["lcpo"] = "lcpo"
    initial_noise: float = Field(0.1, gt=0, le=0.5, description="η at the end of the burn-in; the paper starts at .1.")
    memory: float = Field(0.9, ge=0, lt=1, description="Share of the old η in the new one, per step.")
    burn_in: float = Field(0.1, ge=0, le=1, description="Share of the steps with w = 1 before η is estimated.")

    offset: ClassVar[str] = "between those of the base loss and of its reverse; that of the base loss at the reference if it is symmetric"

    @field_validator("base", mode="after")
    @classmethod
    def _check(cls, base: PreferenceLoss) -> PreferenceLoss:
        if not base.reads_label_probability or not stands_alone(base):
            raise ValueError(f"must be a loss on pairs, such as dpo, ipo, simpo or cpo; {base.name} has no ℓ of a reversed label")
        return base

    def label_correct(self, batch: PreferenceBatch) -> Tensor:
        """w: probability that each record's label is right, (B,), without gradient."""
        with torch.no_grad():
            one_B = torch.ones_like(batch.policy_logps_BN[:, 0])
            right_B, wrong_B = (self.base(dataclasses.replace(batch, label_probability_B=q_B)) for q_B in (one_B, 0 * one_B))
            noise_B = self.initial_noise * one_B if batch.noise_rates_B is None else batch.noise_rates_B.to(one_B)
            return (wrong_B - right_B + (1 - noise_B).logit()).sigmoid()

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        return self.base(dataclasses.replace(batch, label_probability_B=self.label_correct(batch)))

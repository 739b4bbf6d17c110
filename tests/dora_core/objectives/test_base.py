"""The registry of objectives, and an objective written by a reader of the README."""

from __future__ import annotations

import math

import pytest
import torch

from dora_core.objectives import OBJECTIVES, Objective, ObjectiveConfig, StepSums, Terms, find_objective, register_objective
from dora_core.objectives.global_batch import GlobalBatch

LOSSES = torch.tensor([0.0, math.log(2.0), math.log(4.0)], dtype=torch.float64)
FACTORS = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)


def test_objectives_are_found_by_name() -> None:
    assert {name: objective.name for name, objective in OBJECTIVES.items()} == {name: name for name in OBJECTIVES}
    with pytest.raises(ValueError, match="unknown objective 'dor'; did you mean 'dora'"):
        find_objective("dor")


def test_a_name_belongs_to_one_class_and_a_reload_replaces_it() -> None:
    with pytest.raises(ValueError, match=r"objective 'dro' is already registered by dora_core.objectives.robust.DRO"):
        register_objective(type("Other", (Objective,), {"name": "dro"}))
    dro = type(find_objective("dro"))
    assert register_objective(dro) is dro and isinstance(find_objective("dro"), dro)


def test_defaults_are_those_of_a_log_mean_exp() -> None:
    sums = StepSums(mean_factor=2.0, mean_slope_loss=5.0, log_mean_exp=0.5)
    assert Objective().value(sums, lam=3.0) == 1.5
    assert Objective().outer(sums) == 1.0
    assert not Objective().opposes_factors(-LOSSES)
    with pytest.raises(NotImplementedError):
        Objective()(LOSSES, FACTORS, 1.0)


def test_a_reader_adds_an_objective() -> None:
    """The README's example: soft-margin worst case with a floor on the factors, exact over the global batch like any other."""

    @register_objective
    class DoRAFloor(Objective):
        """λ log mean exp(max(h, ½)·ℓ/λ): no record is forgotten."""

        name = "dora_floor"
        uses_factors = True

        def __call__(self, losses_B, factors_B, lam):
            return lam * torch.logsumexp(factors_B.clamp(min=0.5) * losses_B / lam, dim=0) - lam * math.log(len(losses_B))

        def terms(self, losses_B, factors_B, lam):
            h = factors_B.clamp(min=0.5)
            return Terms(slope_B=h, exponent_B=h * losses_B / lam, log_base_B=torch.zeros_like(h))

    try:
        config = ObjectiveConfig(name="dora_floor", lam=2.0)
        batch = GlobalBatch(config)
        batch.begin(3, 2.0)
        weights = [batch.add(LOSSES[i : i + 1], FACTORS[i : i + 1] / 4, torch.ones(1, dtype=torch.bool))[0] for i in range(3)]
        correction = batch.exchange()
        losses = LOSSES.clone().requires_grad_()
        closed = find_objective("dora_floor")(losses, FACTORS / 4, 2.0)
        closed.backward()
        torch.testing.assert_close(torch.cat(weights) * correction * batch.final_scale, losses.grad)
        assert batch.report().value == pytest.approx(closed.item())
    finally:
        del OBJECTIVES["dora_floor"]

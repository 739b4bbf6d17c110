"""λ: constant, scheduled, chosen by effective sample size; carried through a checkpoint."""

from __future__ import annotations

import math

import pytest
import torch

from dora_core.objectives import find_objective
from dora_core.objectives.lambda_control import UNBOUNDED, LambdaControl, lambda_for_ess, weight_ess
from dora_core.objectives.settings import ObjectiveConfig

ONES = torch.ones(2, dtype=torch.float64)


def control(steps: int = 5, **config) -> LambdaControl:
    return LambdaControl(ObjectiveConfig(**config), steps)


def spread(width: float) -> torch.Tensor:
    """Losses of a step whose weights under `dro` have any ESS, at a λ proportional to ``width``."""
    return width * torch.linspace(0, 1, 32, dtype=torch.float64)


def test_constant_and_schedules() -> None:
    assert control(lam=0.3).at(4) == 0.3
    linear = control(lam={"start": 4.0, "end": 1.0, "shape": "linear"})
    assert [linear.at(t) for t in range(5)] == pytest.approx([4.0, 3.25, 2.5, 1.75, 1.0])
    log = control(lam={"start": 4.0, "end": 0.25, "shape": "log"})
    assert [log.at(t) for t in range(5)] == pytest.approx([4.0, 2.0, 1.0, 0.5, 0.25])
    assert control(steps=1, lam={"start": 4.0, "end": 1.0}).at(0) == 4.0


def test_lambda_for_ess_by_hand() -> None:
    """Two records, ℓ = (0, 1), `dro`: weights 1 : e^{1/λ}, ESS = (1 + r)²/(2(1 + r²)) with r = e^{1/λ}. ESS = 0.8 at r = 3, λ = 1/log 3."""
    losses = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert weight_ess(find_objective("dro"), losses, ONES, 1 / math.log(3.0)) == pytest.approx(0.8)
    assert lambda_for_ess(find_objective("dro"), losses, ONES, 0.8) == pytest.approx(1 / math.log(3.0), rel=2e-3)


@pytest.mark.parametrize("name", ["dro", "dora", "dora_outer", "dora_tilted", "dr_dpo"])
@pytest.mark.parametrize("target", [0.3, 0.7, 0.95])
def test_the_chosen_lambda_has_the_stated_ess(name: str, target: float) -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.randn(64, generator=generator, dtype=torch.float64).abs()
    factors = torch.rand(64, generator=generator, dtype=torch.float64) * 2
    objective = find_objective(name)
    lam = lambda_for_ess(objective, losses, factors, target)
    reached = weight_ess(objective, losses, factors, lam) / weight_ess(objective, losses, factors, UNBOUNDED)
    assert reached == pytest.approx(target, abs=2e-3)


def test_auto_has_no_unit() -> None:
    """A loss ten times as large gets a λ ten times as large: the same weights."""
    found = [lambda_for_ess(find_objective("dora"), spread(width), torch.ones(32, dtype=torch.float64), 0.7) for width in (1.0, 10.0)]
    assert found[1] == pytest.approx(10 * found[0], rel=3e-3)


def test_equal_losses_say_nothing() -> None:
    """At the reference every ℓ is log 2: λ stays ∞ instead of running to 0 and jumping at the first difference."""
    auto = control(name="dro", lam="auto")
    auto.observe(spread(0.0) + math.log(2.0), torch.ones(32, dtype=torch.float64))
    assert auto.at(1) == UNBOUNDED


def test_auto_rises_at_once_and_falls_slowly() -> None:
    auto = control(name="dro", lam="auto")
    ones = torch.ones(32, dtype=torch.float64)
    assert auto.learns
    assert auto.at(0) == UNBOUNDED
    auto.observe(spread(1.0), ones)
    found = lambda_for_ess(find_objective("dro"), spread(1.0), ones, 0.9)
    # mean |ℓ| = ½: λ falls from 10·½
    assert auto.at(1) == pytest.approx(5**0.9 * found**0.1, rel=3e-3)
    auto.observe(spread(50.0), ones)
    assert auto.at(2) == pytest.approx(50 * found, rel=3e-3)
    auto.observe(spread(1.0), ones)
    assert auto.at(3) == pytest.approx(50 * found / 1.25, rel=3e-3), "a tenth of the way in log λ would be a fall by a third"
    auto.observe(spread(30.0), ones)
    assert auto.at(4) == pytest.approx((50 / 1.25) ** 0.9 * 30**0.1 * found, rel=3e-3)


@pytest.mark.parametrize("name", ["dro", "dora", "dora_tilted", "dr_dpo", "kldpo"])
@pytest.mark.parametrize("still", [1, 4])
def test_auto_does_not_overshoot_while_the_losses_begin_to_spread(name: str, still: int) -> None:
    """As with a 135M model under dpo: ℓ = log 2 up to rounding (the λ found is about .02), then a spread that grows manifold.

    With the λ found on the first step the second one's ESS was below .4 of its value at λ = ∞; now it is never below the target while
    λ comes down, and reaches it where the spread stays.
    """
    generator, objective, target = torch.Generator().manual_seed(1), find_objective(name), 0.9
    factors = 0.999 + 0.002 * torch.rand(64, generator=generator, dtype=torch.float64)
    auto, reached, naive = control(name=name, lam="auto"), [], []
    widths = [0.004] * still + [0.03, 0.06, 0.1, 0.14, 0.17] + [0.2] * 60
    for width in widths:
        losses = math.log(2.0) + width * torch.randn(64, generator=generator, dtype=torch.float64)
        lam = auto.at(0)
        at_infinity = weight_ess(objective, losses, factors, UNBOUNDED)
        reached.append(weight_ess(objective, losses, factors, lam) / at_infinity)
        found = lambda_for_ess(objective, losses, factors, target)
        naive.append(weight_ess(objective, losses * 0 + math.log(2.0) + (losses - math.log(2.0)) * 7.5, factors, found) / at_infinity)
        auto.observe(losses, factors)
    assert naive[still - 1] < 0.6, "the λ found on a step of rounding concentrates the weights of the next one"
    assert min(reached[: still + 10]) > target
    assert min(reached) > 0.85, "a step's own spread varies around the one before"
    assert sum(reached[-20:]) / 20 < 0.95, "and the weights do become unequal"


def test_auto_never_tilts_against_the_factors() -> None:
    """ℓ < 0 under `dora`: λ stays ∞; `dora_tilted` does not multiply ℓ by h and keeps choosing."""
    losses, factors = spread(0.5) - 0.9, torch.linspace(0.1, 2, 32, dtype=torch.float64)
    multiplied, tilted = control(name="dora", lam="auto"), control(name="dora_tilted", lam="auto")
    multiplied.observe(losses, factors)
    tilted.observe(losses, factors)
    assert multiplied.at(1) == UNBOUNDED
    assert tilted.at(1) < 10


def test_auto_is_restored_exactly() -> None:
    one, other = control(name="dro", lam="auto"), control(name="dro", lam="auto")
    one.observe(spread(2.0), torch.ones(32, dtype=torch.float64))
    other.restore(one.state())
    assert other.at(1) == one.at(1)


def test_erm_has_no_lambda_to_learn() -> None:
    assert not control(name="erm", lam="auto").learns

"""Rates of wrong labels: burn-in, moving average by hand, limits, state, and convergence to the true rates."""

from __future__ import annotations

import pytest
import torch

from dora_core.losses import parse_loss
from dora_core.losses.noise_rates import LARGEST, SMALLEST, NoiseRates
from tests.dora_core.batches import batch_of


def lcpo(**settings: float) -> NoiseRates:
    return NoiseRates(parse_loss({"name": "lcpo", "base": {"name": "dpo", "beta": 1.0}} | settings), ["human", "lm"], steps=10)


def sums(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_other_losses_estimate_nothing() -> None:
    rates = NoiseRates(parse_loss("dpo"), ["human"], 10)
    assert not rates.learns and rates.metrics() == {} and rates.state() == {}


def test_moving_average_after_the_burn_in() -> None:
    rates = lcpo(burn_in=0.2, initial_noise=0.2, memory=0.75)
    assert rates.at(1).tolist() == [0.0, 0.0]
    rates.observe(1, sums([1.0, 1.0], [1.0, 1.0]))
    assert rates.at(2).tolist() == [0.2, 0.2], "nothing is learned in the burn-in"
    # human: mean(1 − w) = .6/2; lm has no record in this step
    rates.observe(2, sums([0.6, 0.0], [2.0, 0.0]))
    assert rates.at(3).tolist() == pytest.approx([0.75 * 0.2 + 0.25 * 0.3, 0.2])
    assert rates.metrics() == pytest.approx({"label_noise_human": 0.225, "label_noise_lm": 0.2})


def test_rates_stay_between_their_limits_and_survive_a_checkpoint() -> None:
    rates = lcpo(burn_in=0.0, memory=0.0)
    rates.observe(0, sums([0.0, 4.0], [5.0, 5.0]))
    assert rates.at(1).tolist() == [SMALLEST, LARGEST]
    other = lcpo(burn_in=0.0)
    other.restore(rates.state())
    assert other.at(1).tolist() == rates.at(1).tolist()


def test_sums_split_a_record_among_its_sources_and_leave_invalid_records_out() -> None:
    batch = batch_of([[0.0, 0.0]] * 3, [[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    shares = torch.tensor([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    found = lcpo(initial_noise=0.2).sums(batch, torch.tensor([True, True, False]), shares)
    # at the reference 1 − w = η = .2
    torch.testing.assert_close(found, sums([0.3, 0.1], [1.5, 0.5]))


@pytest.mark.parametrize(("human", "lm"), [(0.05, 0.3), (0.0, 0.45)])
def test_a_calibrated_policy_gives_the_true_rates(human: float, lm: float) -> None:
    """The paper's theorem: with σ(m) = the true chance that the response is better, η converges to the share of flipped labels."""
    generator = torch.Generator().manual_seed(0)
    rates, sources = lcpo(burn_in=0.0, memory=0.9), torch.eye(2, dtype=torch.float64)
    for step in range(120):
        margins = 3 * torch.randn(600, generator=generator, dtype=torch.float64)
        better = torch.rand(600, generator=generator, dtype=torch.float64) < margins.sigmoid()
        is_lm = torch.arange(600) % 2
        flipped = torch.rand(600, generator=generator, dtype=torch.float64) < torch.tensor([human, lm], dtype=torch.float64)[is_lm]
        labels = (better != flipped).double()
        batch = batch_of([[m, 0.0] for m in margins.tolist()], [[y, 1 - y] for y in labels.tolist()])
        shares = sources[is_lm]
        object.__setattr__(batch, "noise_rates_B", shares @ rates.at(step))
        rates.observe(step, rates.sums(batch, batch.trains_B, shares))
    assert rates.at(0).tolist() == pytest.approx([human, lm], abs=0.03)

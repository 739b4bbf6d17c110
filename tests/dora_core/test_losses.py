"""Each loss against arithmetic written out by hand, an independent float64 reference, and finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from pydantic import ValidationError

from dora_core.losses import LOSSES, PreferenceBatch, parse_loss

NAN = math.nan


def batch_of(policy: list[list[float]], rewards: list[list[float]], reference: list[list[float]] | None = None, dtype=torch.float64):
    """Ragged lists → a padded batch; padding carries garbage on purpose, a loss must never read it."""
    width = max(map(len, policy))

    def pad(rows: list[list[float]], fill: float) -> torch.Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=dtype)

    reference = reference or [[0.0] * len(row) for row in policy]
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in policy])
    return PreferenceBatch(pad(policy, -1e30), pad(reference, 7.0), pad([[4.0] * len(r) for r in policy], 1.0), pad(rewards, 99.0), mask)


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def test_dpo_by_hand() -> None:
    # lr_w = −10 − (−12) = 2, lr_l = −9 − (−8) = −1; β = 0.5: −log σ(0.5·(2 − (−1))) = log(1 + e^−1.5) = 0.201413
    batch = batch_of([[-10.0, -9.0]], [[1.0, 0.0]], [[-12.0, -8.0]])
    assert parse_loss({"name": "dpo", "beta": 0.5})(batch).item() == pytest.approx(0.2014132779827524)


def test_dpo_takes_best_and_worst_of_a_list_in_any_order() -> None:
    # rewards (2, 5, −1): winner is response 1 (lr 3), loser response 2 (lr 1): −log σ(0.1·2) = log(1 + e^−0.2)
    batch = batch_of([[10.0, 3.0, 1.0]], [[2.0, 5.0, -1.0]])
    assert parse_loss("dpo")(batch).item() == pytest.approx(math.log1p(math.exp(-0.2)))


def test_dpo_all_pairs_by_hand() -> None:
    # lr = (3, 1, 0), rewards (2, 1, 1): strict pairs (0,1) and (0,2), the tie (1,2) is none: mean of softplus(−2β), softplus(−3β)
    batch = batch_of([[3.0, 1.0, 0.0]], [[2.0, 1.0, 1.0]])
    expected = (softplus(-2.0) + softplus(-3.0)) / 2
    assert parse_loss({"name": "dpo", "beta": 1.0, "pairs": "all"})(batch).item() == pytest.approx(expected)


def test_plackett_luce_by_hand() -> None:
    # β·lr best first = (1, 0, −1): log(e + 1 + 1/e) − 1  +  log(1 + 1/e) − 0  +  0 = 0.407606 + 0.313262 = 0.720868
    batch = batch_of([[-1.0, 1.0, 0.0]], [[1.0, 3.0, 2.0]])
    assert parse_loss({"name": "dpo_pl", "beta": 1.0})(batch).item() == pytest.approx(0.40760596444438 + 0.31326168751822)


def test_plackett_luce_at_the_reference_is_log_factorial() -> None:
    batch = batch_of([[0.0] * 5], [[5.0, 4.0, 3.0, 2.0, 1.0]])
    assert parse_loss("dpo_pl")(batch).item() == pytest.approx(math.log(math.factorial(5)))


def test_plackett_luce_against_a_product_of_choices() -> None:
    """Independent reference: −log Π_k e^{s_k} / Σ_{j ≥ k} e^{s_j} over the sorted list, in plain Python."""
    generator = torch.Generator().manual_seed(0)
    for n in range(2, 7):
        scores = torch.randn(n, generator=generator, dtype=torch.float64).tolist()
        order = torch.randperm(n, generator=generator).tolist()
        ranked = [s for _, s in sorted(zip(order, scores, strict=True), reverse=True)]
        expected = -math.log(math.prod(math.exp(ranked[k]) / sum(map(math.exp, ranked[k:])) for k in range(n)))
        got = parse_loss({"name": "dpo_pl", "beta": 1.0})(batch_of([scores], [list(map(float, order))])).item()
        assert got == pytest.approx(expected, rel=1e-12)


def test_plackett_luce_equals_dpo_on_pairs() -> None:
    batch = batch_of([[-3.0, 2.0], [0.5, 0.1]], [[0.0, 1.0], [2.0, -2.0]], [[-1.0, 1.0], [0.0, 0.3]])
    torch.testing.assert_close(parse_loss("dpo_pl")(batch), parse_loss("dpo")(batch))


def test_lire_by_hand() -> None:
    # T = 2, log π = (0, −2 log 3): softmax(0, −log 3) = (3/4, 1/4). r = (log 4, 0): softmax = (4/5, 1/5). ℓ = −(0.6 + 0.05) = −0.65
    batch = batch_of([[0.0, -2 * math.log(3.0)]], [[math.log(4.0), 0.0]])
    assert parse_loss("lire")(batch).item() == pytest.approx(-0.65)


def test_lire_leaves_unmeasured_responses_out() -> None:
    with_null = batch_of([[0.0, 5.0, -2 * math.log(3.0)]], [[math.log(4.0), NAN, 0.0]])
    assert parse_loss("lire")(with_null).item() == pytest.approx(-0.65)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_padding_and_null_rewards_change_nothing(name: str) -> None:
    """A record's loss is the same alone, next to a longer list, and with unmeasured responses inserted."""
    loss = parse_loss(name)
    alone = loss(batch_of([[0.3, -1.0]], [[1.0, 0.0]]))
    beside = loss(batch_of([[0.3, -1.0], [1.0, 2.0, 3.0, 4.0]], [[1.0, 0.0], [1.0, 2.0, 3.0, 4.0]]))[:1]
    with_null = loss(batch_of([[9.0, 0.3, -1.0]], [[NAN, 1.0, 0.0]]))
    torch.testing.assert_close(beside, alone)
    torch.testing.assert_close(with_null, alone)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_order_of_responses_does_not_matter(name: str) -> None:
    policy, rewards = [0.4, -1.2, 2.0], [0.0, 2.0, 1.0]
    values = [
        parse_loss(name)(batch_of([[policy[i] for i in p]], [[rewards[i] for i in p]])).item() for p in itertools.permutations(range(3))
    ]
    assert values == pytest.approx([values[0]] * 6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_ties_and_missing_rewards_are_no_preference(name: str) -> None:
    batch = batch_of([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], [[1.0, 1.0], [NAN, 1.0], [NAN, NAN]])
    batch.policy_logps_BN.requires_grad_()
    assert not batch.has_preference_B.any()
    losses = parse_loss(name)(batch)
    assert losses.isfinite().all()
    losses.sum().backward()
    assert batch.policy_logps_BN.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_against_finite_differences(name: str) -> None:
    rewards = torch.tensor([[0.0, 2.0, 1.0], [1.0, NAN, 3.0]], dtype=torch.float64)
    zeros, mask = torch.zeros_like(rewards), torch.ones_like(rewards, dtype=torch.bool)
    policy = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    loss = parse_loss(name)
    assert torch.autograd.gradcheck(lambda p: loss(PreferenceBatch(p, zeros, zeros + 3, rewards, mask)), policy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_huge_log_ratios_stay_finite(name: str, dtype: torch.dtype) -> None:
    batch = batch_of([[1e5, -1e5, 0.0]], [[0.0, 1.0, 2.0]], dtype=dtype)
    policy = batch.policy_logps_BN.requires_grad_()
    losses = parse_loss(name)(batch)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert policy.grad.isfinite().all()


def test_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown loss 'dppo'; did you mean 'dpo'"):
        parse_loss("dppo")


def test_parameters_are_bounded() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        parse_loss({"name": "dpo", "beta": 0.0})
    with pytest.raises(ValidationError, match="Extra inputs"):
        parse_loss({"name": "dpo", "bta": 0.1})

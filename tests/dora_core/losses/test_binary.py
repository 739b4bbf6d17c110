"""KTO and BCO at fixed reference points: arithmetic by hand, the independent reference, bounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from dora_core.losses import PreferenceBatch, parse_loss
from tests.dora_core.batches import NAN, batch_of, for_all, ragged, same, shifted, value
from tests.dora_core.losses.reference import compare_precisions, compare_with_reference

LOG2 = math.log(2.0)

PARAMETERS: list[dict[str, Any]] = [
    {"name": "kto"},
    {"name": "bco"},
    {"name": "kto", "beta": 0.6, "fixed_z0": 0.8, "desirable_weight": 1.5, "undesirable_weight": 0.4, "pairs": "all"},
    {"name": "bco", "beta": 0.6, "fixed_delta": -0.4, "pairs": "all"},
]


def test_kto() -> None:
    # β·lr = (log 3, −log 4), z0 = 0: σ(log 3) = 3/4, σ(log 4) = 4/5; λ_D = 1, λ_U = 2: ½[1·(1 − ¾) + 2·(1 − ⅘)] = 0.325
    loss = {"name": "kto", "beta": 0.5, "undesirable_weight": 2.0}
    assert value(loss, [[2 * math.log(3.0), -2 * math.log(4.0)]], [[1.0, 0.0]]) == pytest.approx(0.325)


def test_kto_reference_point() -> None:
    # z0 = 2·log 3 nats, β = ½: β·lr_w − β·z0 = 0 → ½; β·z0 − β·lr_l = log 3 + log 3 = log 9 → 1/10; mean 0.3
    loss = {"name": "kto", "beta": 0.5, "fixed_z0": 2 * math.log(3.0)}
    assert value(loss, [[2 * math.log(3.0), -2 * math.log(3.0)]], [[1.0, 0.0]]) == pytest.approx(0.3)


def test_bco() -> None:
    # β·lr = (log 3, 0), δ = log 3: −log σ(0) = log 2; −log σ(log 3 − 0) = log 4/3; mean = ½·log(8/3) = 0.490415
    loss = {"name": "bco", "beta": 1.0, "fixed_delta": math.log(3.0)}
    assert value(loss, [[math.log(3.0), 0.0]], [[1.0, 0.0]]) == pytest.approx(math.log(8 / 3) / 2)


@for_all(batch=ragged(most=2), delta=st.floats(-5, 5))
def test_bco_bounds_dpo_from_above_at_every_delta(batch: PreferenceBatch, delta: float) -> None:
    """arXiv 2404.04656: −log σ(r_w − r_l) < −log σ(r_w − δ) − log σ(δ − r_l); ours is half of the right side."""
    assert (2 * parse_loss({"name": "bco", "fixed_delta": delta})(batch) > parse_loss("dpo")(batch)).all()


@for_all(batch=ragged(most=2), delta=st.floats(-3, 3))
def test_shifting_all_rewards_by_delta_is_what_delta_does(batch: PreferenceBatch, delta: float) -> None:
    at_delta = parse_loss({"name": "bco", "fixed_delta": delta})(shifted(batch, delta / 0.1))
    same(at_delta, parse_loss("bco")(batch))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("kto", 0.5),
        ("bco", LOG2),
    ],
    ids=str,
)
def test_offset_at_the_reference(loss: Any, expected: float) -> None:
    assert value(loss, [[-3.0, -3.0]], [[1.0, 0.0]], [[-3.0, -3.0]], [[9.0, 4.0]]) == pytest.approx(expected)


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: " ".join(map(str, p.values())))
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_equal_the_reference(parameters: dict[str, Any], seed: int) -> None:
    compare_with_reference(parameters, seed)


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: " ".join(map(str, p.values())))
def test_float32_agrees_with_float64(parameters: dict[str, Any]) -> None:
    compare_precisions(parameters)


# ------------------------------------------------------------------------------------------------------ unpaired records


def of_label(loss: dict[str, Any], log_ratio: float, label: float) -> float:
    """ℓ of one labelled response."""
    return parse_loss(loss)(batch_of([[log_ratio]], [[label]], unpaired=[True])).item()


def test_kto_of_a_label_by_hand() -> None:
    # β·lr = log 3, β·z0 = 0: λ_D·σ(−log 3) = 1.5·¼; λ_U·σ(log 3) = 2·¾
    loss = {"name": "kto", "beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 2.0}
    assert of_label(loss, 2 * math.log(3.0), 1.0) == pytest.approx(0.375, rel=1e-12)
    assert of_label(loss, 2 * math.log(3.0), 0.0) == pytest.approx(1.5, rel=1e-12)
    # z0 = 2·log 3 nats: β(z0 − lr) = log 3 − (−log 3) = log 9 → σ = 9/10; the other side 1/10
    loss = {"name": "kto", "beta": 0.5, "fixed_z0": 2 * math.log(3.0)}
    assert of_label(loss, -2 * math.log(3.0), 1.0) == pytest.approx(0.9, rel=1e-12)
    assert of_label(loss, -2 * math.log(3.0), 0.0) == pytest.approx(0.1, rel=1e-12)


def test_bco_of_a_label_by_hand() -> None:
    # β·lr − δ = log 4 − log 2 = log 2: −log σ(log 2) = log 3/2; −log σ(−log 2) = log 3
    loss = {"name": "bco", "beta": 1.0, "fixed_delta": math.log(2.0)}
    assert of_label(loss, math.log(4.0), 1.0) == pytest.approx(math.log(1.5), rel=1e-12)
    assert of_label(loss, math.log(4.0), 0.0) == pytest.approx(math.log(3.0), rel=1e-12)


@pytest.mark.parametrize(("loss", "expected"), [("kto", 0.5), ("bco", LOG2)])
def test_offset_of_a_label_at_the_reference(loss: str, expected: float) -> None:
    assert [of_label({"name": loss}, 0.0, label) for label in (1.0, 0.0)] == pytest.approx([expected] * 2)


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: " ".join(map(str, p.values())))
@for_all(winner=st.floats(-30, 30), loser=st.floats(-30, 30))
def test_a_pair_is_the_mean_of_its_two_unpaired_records(parameters: dict[str, Any], winner: float, loser: float) -> None:
    """In value and gradient; beside each other in one batch, where a list with one measured response is a third record."""
    pair = batch_of([[winner, loser]], [[1.0, 0.0]])
    records = batch_of([[winner], [loser], [winner, loser]], [[1.0], [0.0], [NAN, 1.0]], unpaired=[True, True, False])
    gradients = []
    for batch, weights in ((pair, [1.0]), (records, [0.5, 0.5, 0.0])):
        policy = batch.policy_logps_BN.requires_grad_()
        losses = parse_loss(parameters)(batch)
        weighted = (losses * torch.tensor(weights, dtype=torch.float64)).sum()
        weighted.backward()
        gradients.append((weighted.detach(), policy.grad))
    (value_of_pair, of_pair), (value_of_both, of_both) = gradients
    same(value_of_pair, value_of_both)
    same(of_pair[0], torch.stack([of_both[0, 0], of_both[1, 0]]))
    assert not of_both[:2, 1].any() and not of_both[2].any()


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: " ".join(map(str, p.values())))
def test_gradient_of_a_label_against_finite_differences(parameters: dict[str, Any]) -> None:
    def losses(policy: torch.Tensor) -> torch.Tensor:
        zero, mask = torch.zeros(4, 1, dtype=torch.float64), torch.ones(4, 1, dtype=torch.bool)
        labels = torch.tensor([[1.0], [0.0], [1.0], [0.0]], dtype=torch.float64)
        return parse_loss(parameters)(PreferenceBatch(policy, zero, zero + 1, labels, mask, mask[:, 0]))

    start = torch.tensor([[-3.0], [-0.5], [0.7], [4.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(losses, start)
    slopes = torch.autograd.grad(losses(start).sum(), start)[0].squeeze(1)
    assert slopes[::2].lt(0).all() and slopes[1::2].gt(0).all(), "desirable responses rise, undesirable ones fall"


@pytest.mark.parametrize("name", ["kto", "bco"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_label_at_huge_log_ratios_stays_finite(name: str, dtype: torch.dtype) -> None:
    batch = batch_of([[1e5], [1e5], [-1e5], [-1e5]], [[1.0], [0.0], [1.0], [0.0]], dtype=dtype, unpaired=[True] * 4)
    policy = batch.policy_logps_BN.requires_grad_()
    losses = parse_loss(name)(batch)
    losses.sum().backward()
    assert losses.isfinite().all() and policy.grad.isfinite().all()

"""AOT: by hand, against sorting with autograd, and given partners."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from dora_core.losses import PreferenceBatch, parse_loss
from tests.dora_core.batches import batch_of, softplus


def drawn(records: int = 9) -> PreferenceBatch:
    generator = torch.Generator().manual_seed(0)

    def column() -> list[list[float]]:
        return (-10 * torch.rand(records, 2, generator=generator, dtype=torch.float64)).tolist()

    return batch_of(column(), [[1.0, 0.0] if i % 2 else [0.0, 1.0] for i in range(records)], column())


def test_by_hand() -> None:
    # u = (3, 1), v = (0, 2): sorted (1, 3) against (0, 2): both differ by 1; record 0 meets v = 2, record 1 meets v = 0
    columns = [[4.0, 1.0], [2.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], [[5.0, 5.0], [3.0, 1.0]]
    assert parse_loss({"name": "aot", "beta": 1.0})(batch_of(*columns)).tolist() == pytest.approx([softplus(-1.0)] * 2)
    # responses: u = lr_w = (−1, −1), v = lr_l = (−4, 0): sorted differences 3 and −1
    found = parse_loss({"name": "aot", "beta": 1.0, "matching": "responses"})(batch_of(*columns))
    assert found.mean().item() == pytest.approx((softplus(-3.0) + softplus(1.0)) / 2)


@pytest.mark.parametrize("matching", ["margins", "responses"])
def test_value_and_gradient_are_those_of_the_sorted_formula(matching: str) -> None:
    batch, beta = drawn(), 0.3
    policy = batch.policy_logps_BN.requires_grad_()
    mean = parse_loss({"name": "aot", "beta": beta, "matching": matching})(batch).mean()
    (found,) = torch.autograd.grad(mean, policy)
    lr_BN = policy - batch.reference_logps_BN
    if matching == "margins":
        u, v = (batch.of_best(x) - batch.of_worst(x) for x in (policy, batch.reference_logps_BN))
    else:
        u, v = batch.of_best(lr_BN), batch.of_worst(lr_BN)
    expected = torch.nn.functional.softplus(-beta * (u.sort().values - v.sort().values)).mean()
    assert mean.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(found, torch.autograd.grad(expected, policy)[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("matching", ["margins", "responses"])
def test_records_with_given_partners_do_not_depend_on_their_batch(matching: str) -> None:
    whole = drawn()
    loss = parse_loss({"name": "aot", "matching": matching})
    partners = loss.match(loss.quantities(whole))
    expected = loss(whole)
    for part in (slice(0, 2), slice(2, 9)):
        tensors = {f.name: getattr(whole, f.name) for f in dataclasses.fields(whole) if getattr(whole, f.name) is not None}
        piece = PreferenceBatch(**{name: tensor[part] for name, tensor in tensors.items()}, partners_B2=partners[part])
        torch.testing.assert_close(loss(piece), expected[part])


def test_records_without_a_preference_match_nothing() -> None:
    batch = batch_of([[4.0, 1.0], [90.0, 1.0], [2.0, 1.0]], [[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]], [[5.0, 5.0], [0.0, 0.0], [3.0, 1.0]])
    found = parse_loss({"name": "aot", "beta": 1.0})(batch)
    assert found[::2].tolist() == pytest.approx([softplus(-1.0)] * 2) and found.isfinite().all()


def test_offset_at_the_reference() -> None:
    batch = batch_of([[-1.0, -2.0], [-3.0, -3.5]], [[1.0, 0.0]] * 2, [[-1.0, -2.0], [-3.0, -3.5]])
    assert parse_loss("aot")(batch).tolist() == pytest.approx([math.log(2.0)] * 2)

"""The contract every loss keeps: padding, ties, missing rewards, range, gradients, parameters, registry."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from dora_core.config.alignment import AlignConfig
from dora_core.losses import LOSSES, PairwiseLoss, PreferenceBatch, parse_loss
from tests.dora_core.batches import NAN, VARIANTS, batch_of

each_loss = pytest.mark.parametrize("variant", VARIANTS)

RAGGED = ([[0.3, -1.0], [1.0, 2.0, -3.0, 4.0], [0.5, 0.1, -0.7]], [[1.0, 0.0], [1.0, 2.0, 3.0, 4.0], [NAN, 0.2, 0.9]])


@each_loss
@pytest.mark.parametrize("garbage", [-1e30, NAN, -math.inf])
def test_a_record_does_not_see_its_neighbours_or_its_padding(variant: str, garbage: float) -> None:
    """ℓ and its gradient are the same in a ragged batch and alone, whatever the padding holds."""
    loss, (policy, rewards) = VARIANTS[variant], RAGGED
    together = batch_of(policy, rewards, garbage=garbage)
    leaf = together.policy_logps_BN.requires_grad_()
    losses = loss(together)
    losses.sum().backward()
    for row, (logps, r) in enumerate(zip(policy, rewards, strict=True)):
        alone = batch_of([logps], [r])
        own = alone.policy_logps_BN.requires_grad_()
        value = loss(alone)
        value.sum().backward()
        torch.testing.assert_close(losses[row : row + 1], value)
        torch.testing.assert_close(leaf.grad[row, : len(logps)], own.grad[0])
        assert not leaf.grad[row, len(logps) :].any()


@each_loss
def test_unmeasured_responses_change_nothing(variant: str) -> None:
    loss = VARIANTS[variant]
    torch.testing.assert_close(loss(batch_of([[9.0, 0.3, -1.0]], [[NAN, 1.0, 0.0]])), loss(batch_of([[0.3, -1.0]], [[1.0, 0.0]])))


@each_loss
def test_order_of_responses_does_not_matter(variant: str) -> None:
    policy, rewards, lengths = [0.4, -1.2, 2.0], [0.0, 2.0, 1.0], [3.0, 7.0, 5.0]

    def value(order: tuple[int, ...]) -> float:
        return VARIANTS[variant](
            batch_of(*([[x[i] for i in order]] for x in (policy, rewards)), None, [[lengths[i] for i in order]])
        ).item()

    values = [value(order) for order in itertools.permutations(range(3))]
    assert values == pytest.approx([values[0]] * 6)


@each_loss
def test_ties_and_missing_rewards_are_no_preference(variant: str) -> None:
    batch = batch_of([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], [[1.0, 1.0], [NAN, 1.0], [NAN, NAN]])
    batch.policy_logps_BN.requires_grad_()
    assert not batch.has_preference_B.any()
    losses = VARIANTS[variant](batch)
    assert losses.isfinite().all()
    losses.sum().backward()
    assert batch.policy_logps_BN.grad.isfinite().all()


@each_loss
def test_gradients_against_finite_differences(variant: str) -> None:
    rewards = torch.tensor([[0.0, 2.0, 1.0, 1.0], [1.0, NAN, 3.0, 99.0]], dtype=torch.float64)
    lengths = torch.tensor([[2.0, 3.0, 5.0, 4.0], [1.0, 6.0, 3.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    policy = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda p: VARIANTS[variant](PreferenceBatch(p, torch.zeros_like(rewards), lengths, rewards, mask)), policy
    )


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [[0.0, 1.0, 2.0], [2.0, 0.0, 1.0]], ids=["wrong", "right"])
def test_huge_log_ratios_stay_finite(variant: str, dtype: torch.dtype, order: list[float]) -> None:
    """|β·lr| = 1e4 for the loss's own β, ordered right and utterly wrong."""
    huge = 1e4 / getattr(VARIANTS[variant], "beta", 0.1)
    batch = batch_of([[huge, -huge, 0.0]], [order], dtype=dtype)
    policy = batch.policy_logps_BN.requires_grad_()
    losses = VARIANTS[variant](batch)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert policy.grad.isfinite().all()


@each_loss
def test_the_batch_is_left_as_it_was(variant: str) -> None:
    batch = batch_of(*RAGGED)
    before = {f.name: getattr(batch, f.name).clone() for f in dataclasses.fields(batch)}
    VARIANTS[variant](batch)
    for name, tensor in before.items():
        torch.testing.assert_close(getattr(batch, name), tensor, rtol=0, atol=0, equal_nan=True)


@each_loss
def test_what_a_loss_says_it_reads_is_all_it_reads(variant: str) -> None:
    """``reads_pairs_only`` lets the trainer drop the middle of a list: the loss must not depend on it, and otherwise must."""
    loss = VARIANTS[variant]
    values = [loss(batch_of([[-0.2, middle, -1.0]], [[2.0, 1.0, 0.0]])).item() for middle in (-0.5, -3.0)]
    assert (values[0] == values[1]) is loss.reads_pairs_only


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_parameters_are_described_and_bounded(name: str) -> None:
    schema = LOSSES[name].model_json_schema()["properties"]
    parameters = {key: spec for key, spec in schema.items() if key != "name"}
    assert all(spec["description"] for spec in parameters.values())
    for spec in parameters.values():
        if spec["type"] == "number":
            assert ("minimum" in spec or "exclusiveMinimum" in spec) and ("maximum" in spec or "exclusiveMaximum" in spec)
    assert LOSSES[name].offset


def test_the_form_of_prefect_knows_every_loss() -> None:
    choices = TypeAdapter(AlignConfig).json_schema()["properties"]["loss"]["anyOf"]
    assert [choice["properties"]["name"]["const"] for choice in choices] == sorted(LOSSES)


def test_every_pairwise_loss_offers_all_pairs() -> None:
    pairwise = {name for name, loss in LOSSES.items() if issubclass(loss, PairwiseLoss)}
    assert pairwise == set(LOSSES) - {"dpo_pl", "lire", "rrhf", "pro"}


def test_a_loss_survives_json_and_pickle_inside_its_configuration() -> None:
    config = AlignConfig.model_validate({"loss": {"name": "simpo", "beta": 3.0, "pairs": "all"}})
    assert AlignConfig.model_validate_json(config.model_dump_json()) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown loss 'dppo'; did you mean 'dpo'"):
        parse_loss("dppo")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "dpo", "beta": 0.0}, "greater than 0"),
        ({"name": "dpo", "beta": "0.1"}, "valid number"),
        ({"name": "dpo", "bta": 0.1}, "Extra inputs"),
        ({"name": "dpo", "pairs": "some"}, "'best_worst' or 'all'"),
        ({"name": "lire", "pairs": "all"}, "Extra inputs"),
        ({"name": "exo", "epsilon": 0.0}, "greater than 0"),
        ({"name": "robust_dpo", "epsilon": 0.5}, "less than 0.5"),
        ({"name": "simpo", "gamma": 1.0}, "Extra inputs"),
        ({"name": "simpo", "beta": 0.1}, "must be at least 1 for simpo, usually 2 to 10"),
        ({"name": "simpo", "beta": NAN}, "less than or equal to 100"),
    ],
)
def test_parameters_are_checked(value: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse_loss(value)

"""The contract every loss keeps: padding, ties, missing rewards, range, gradients, parameters, registry."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from pydantic import ValidationError

from dora_core.losses import LOSSES, PreferenceBatch, PreferenceLoss, parse_loss, register_loss, registered_losses
from tests.dora_core.batches import NAN, VARIANTS, batch_of, for_all, ragged, same, shifted

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


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "lcpo"])  # lcpo's weights are constants for the gradient only
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
    batch = dataclasses.replace(batch_of(*RAGGED), label_probability_B=torch.tensor([0.9, 1.0, 0.2], dtype=torch.float64))
    tensors = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    before = {name: tensor.clone() for name, tensor in tensors.items() if tensor is not None}
    VARIANTS[variant](batch)
    for name, tensor in before.items():
        torch.testing.assert_close(getattr(batch, name), tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if VARIANTS[v].reads_label_probability and v.split()[0] != "dpo_pro"])
@for_all(batch=ragged(), chances=st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_a_soft_label_is_the_expectation_over_the_two_labels(variant: str, batch: PreferenceBatch, chances: list[float]) -> None:
    """ℓ with probability q = q·ℓ + (1 − q)·ℓ of the record with its order reversed."""
    loss, q_B = VARIANTS[variant], torch.tensor(chances[: len(batch.mask_BN)], dtype=torch.float64)
    reversed_batch = dataclasses.replace(batch, rewards_BN=-batch.rewards_BN)
    same(loss(dataclasses.replace(batch, label_probability_B=q_B)), q_B * loss(batch) + (1 - q_B) * loss(reversed_batch))
    same(loss(dataclasses.replace(batch, label_probability_B=torch.ones_like(q_B))), loss(batch))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if VARIANTS[v].reads_unpaired])
def test_a_soft_label_of_one_response_is_the_expectation_over_its_two_labels(variant: str) -> None:
    columns = [[[2.0], [-1.0], [3.0, 1.0]], [[1.0], [0.0], [1.0, 0.0]]]
    q_B = torch.tensor([0.7, 0.25, 1.0], dtype=torch.float64)
    batch = batch_of(*columns, unpaired=[True, True, False])
    other = batch_of(columns[0], [[0.0], [1.0], [0.0, 1.0]], unpaired=[True, True, False])
    loss = VARIANTS[variant]
    same(loss(dataclasses.replace(batch, label_probability_B=q_B)), q_B * loss(batch) + (1 - q_B) * loss(other))


@each_loss
def test_reads_pairs_only_is_true_exactly_for_losses_that_ignore_the_middle(variant: str) -> None:
    """``reads_pairs_only`` lets the trainer drop the middle of a list: the loss must not depend on it, and otherwise must."""
    loss = VARIANTS[variant]
    values = [loss(batch_of([[-0.2, middle, -1.0]], [[2.0, 1.0, 0.0]])).item() for middle in (-0.5, -30.0)]
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


@each_loss
@for_all(batch=ragged(), order=st.randoms(use_true_random=False))
def test_permutation_of_responses_and_records(variant: str, batch: PreferenceBatch, order: Any) -> None:
    """Padding included: a response may lie anywhere in the row."""
    loss, (records, width) = VARIANTS[variant], batch.mask_BN.shape
    columns = torch.tensor(order.sample(range(width), width))
    rows = torch.tensor(order.sample(range(records), records))
    fields = ("policy_logps_BN", "reference_logps_BN", "lengths_BN", "rewards_BN", "mask_BN")
    permuted = PreferenceBatch(*(getattr(batch, f)[rows][:, columns] for f in fields))
    same(loss(permuted), loss(batch)[rows])


# A record's log-ratios are only defined up to the prompt's partition function; these losses respect that.
SHIFT_INVARIANT = {"dpo", "r_dpo", "cdpo", "robust_dpo", "ropo", "dpo_pro", "ipo", "exo", "hinge", "dpo_pl", "lire", "d2o", "lcpo"}
REFERENCE_FREE = {"simpo", "sft", "cpo", "orpo", "asft", "lire", "rrhf", "pro"}
# A finite optimum of the margin or of the winner's own likelihood; apo_down lowers both responses on purpose.
FINITE_OPTIMUM = {"ipo", "exo", "cdpo", "sppo", "nca", "apo_down"}


@each_loss
@for_all(batch=ragged(), by=st.floats(-5, 5))
def test_a_constant_on_all_log_ratios_of_a_record_changes_nothing(variant: str, batch: PreferenceBatch, by: float) -> None:
    if variant.split()[0] in SHIFT_INVARIANT:
        same(VARIANTS[variant](shifted(batch, by)), VARIANTS[variant](batch))


@each_loss
def test_which_losses_a_constant_does_change(variant: str) -> None:
    """Per-token losses with unequal lengths, those with an SFT term, those on single log-ratios: they have an absolute zero."""
    batch = batch_of([[-1.0, -2.0, -1.5]], [[2.0, 0.0, 1.0]], None, [[3.0, 8.0, 5.0]])
    changed = not torch.allclose(VARIANTS[variant](shifted(batch, 1.0)), VARIANTS[variant](batch), rtol=1e-9)
    assert changed is (variant.split()[0] not in SHIFT_INVARIANT)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.split()[0] not in ("lire", "pro")])
@for_all(batch=ragged())
def test_only_the_order_of_rewards_matters(variant: str, batch: PreferenceBatch) -> None:
    monotone = PreferenceBatch(
        batch.policy_logps_BN, batch.reference_logps_BN, batch.lengths_BN, (batch.rewards_BN / 4).exp() * 3 - 7, batch.mask_BN
    )
    same(VARIANTS[variant](monotone), VARIANTS[variant](batch))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.split()[0] in REFERENCE_FREE])
@for_all(batch=ragged(), by=st.floats(-5, 5))
def test_reference_free_losses_do_not_read_the_reference(variant: str, batch: PreferenceBatch, by: float) -> None:
    other = PreferenceBatch(batch.policy_logps_BN, batch.reference_logps_BN + by, batch.lengths_BN, batch.rewards_BN, batch.mask_BN)
    same(VARIANTS[variant](other), VARIANTS[variant](batch))


@each_loss
@for_all(batch=ragged())
def test_values_and_gradients_are_finite(variant: str, batch: PreferenceBatch) -> None:
    batch.policy_logps_BN.requires_grad_()
    losses = VARIANTS[variant](batch)
    losses.sum().backward()
    assert losses.shape == (len(batch.mask_BN),)
    assert losses.isfinite().all() and batch.policy_logps_BN.grad.isfinite().all()


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@for_all(rows=st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=5))
def test_finite_up_to_ten_thousand(variant: str, dtype: torch.dtype, rows: list[float]) -> None:
    """β·lr anywhere in ±1e4 for the loss's own β."""
    scale = 1 / getattr(VARIANTS[variant], "beta", 1.0)
    batch = batch_of([[scale * x for x in rows]], [list(map(float, range(len(rows))))], dtype=dtype)
    batch.policy_logps_BN.requires_grad_()
    losses = VARIANTS[variant](batch)
    losses.sum().backward()
    assert losses.isfinite().all() and batch.policy_logps_BN.grad.isfinite().all()


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.split()[0] not in FINITE_OPTIMUM])
@for_all(batch=ragged(most=2))
def test_a_more_likely_winner_is_never_worse(variant: str, batch: PreferenceBatch) -> None:
    """Without a finite optimum the gradient at the preferred response is never positive, at the other never negative."""
    policy = batch.policy_logps_BN.requires_grad_()
    VARIANTS[variant](batch).sum().backward()
    best, worst = batch.best_worst
    assert (policy.grad.gather(1, best[:, None]) <= 0).all()
    assert (policy.grad.gather(1, worst[:, None]) >= 0).all()


# ------------------------------------------------------------------------------------------------- the batch and the registry


def test_quantities_of_a_batch_by_hand() -> None:
    """Two records; the second has two responses, one of them without a reward."""
    batch = batch_of(
        [[-2.0, -6.0, -1.0], [-3.0, -4.0]], [[1.0, 3.0, 1.0], [NAN, 0.5]], [[-1.0, -2.0, -1.0], [-5.0, -4.0]], [[2.0, 3.0, 1.0], [3.0, 8.0]]
    )
    assert batch.measured_BN.tolist() == [[True, True, True], [False, True, False]]
    assert batch.log_ratios_BN.tolist() == [[-1.0, -4.0, 0.0], [2.0, 0.0, 0.0]], "padding has a log-ratio of 0"
    assert batch.token_counts_BN.tolist() == [[2.0, 3.0, 1.0], [3.0, 8.0, 1.0]], "padding has one token: safe to divide by"
    assert batch.average_logps_BN.tolist() == [[-1.0, -2.0, -1.0], [-1.0, -0.5, 0.0]]
    assert batch.beats_BNN.nonzero().tolist() == [[0, 1, 0], [0, 1, 2]], "response 1 against 0 and 2; ties and missing rewards do not count"
    assert batch.has_preference_B.tolist() == [True, False]
    assert [index.tolist() for index in batch.best_worst] == [[1, 1], [0, 1]]
    assert batch.of_best(batch.log_ratios_BN).tolist() == [-4.0, 0.0]
    assert batch.of_worst(batch.log_ratios_BN).tolist() == [-1.0, 0.0]


def test_a_name_belongs_to_one_class_and_a_reload_replaces_it() -> None:
    with pytest.raises(ValueError, match=r"loss 'dpo' is already registered by dora_core.losses.logistic.DPO; choose another name"):
        register_loss(type("Other", (PreferenceLoss,), {"__annotations__": {"name": str}, "name": "dpo", "offset": "0"}))
    assert register_loss(LOSSES["dpo"]) is LOSSES["dpo"]


def test_a_loss_is_a_name_a_mapping_or_an_instance() -> None:
    instance = parse_loss({"name": "dpo", "beta": 0.3})
    assert parse_loss(instance) is instance
    assert parse_loss("dpo") == parse_loss({"name": "dpo"})
    with pytest.raises(ValueError, match=r"a loss is a name or a mapping with `name`, got 3; allowed: aot, apo_down"):
        parse_loss(3)
    assert list(registered_losses()) == sorted(LOSSES)


def test_only_the_flag_makes_a_record_unpaired() -> None:
    """A list with one measured response carries no signal; the same response as a labelled record does."""
    columns = [[[2.0, 1.0], [2.0], [-1.0], [3.0, 1.0]], [[NAN, 1.0], [1.0], [0.0], [1.0, 0.0]]]
    silent = batch_of(*columns)
    assert silent.trains_B.tolist() == [False, False, False, True] and not silent.unpaired_B.any()
    batch = batch_of(*columns, unpaired=[False, True, True, False])
    assert batch.trains_B.tolist() == [False, True, True, True] and batch.has_preference_B.tolist() == [False, False, False, True]
    assert batch.desirable_B[1:3].tolist() == [True, False]
    assert batch.margins_B[1:].tolist() == [2.0, 1.0, 2.0], "lr, −lr, lr_w − lr_l"


def test_the_losses_that_read_labels_are_kto_and_bco() -> None:
    assert {name for name, loss in LOSSES.items() if loss.reads_unpaired} == {"kto", "bco"}

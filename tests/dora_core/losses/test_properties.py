"""What must hold for every input: identities between losses, invariances, optima."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dora_core.losses import LOSSES, PreferenceBatch, parse_loss
from tests.dora_core.batches import VARIANTS, batch_of

logp = st.floats(-30, 0)
each_loss = pytest.mark.parametrize("variant", VARIANTS)
PAIRWISE = sorted(name for name in LOSSES if "pairs" in LOSSES[name].model_fields)


def for_all(**arguments: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``given`` with the same few examples in every run: there are many losses."""
    return lambda test: settings(max_examples=20)(given(**arguments)(test))


@st.composite
def ragged(draw: st.DrawFn, most: int = 5) -> PreferenceBatch:
    """One to three records of 2 to ``most`` responses with distinct rewards."""
    sizes = draw(st.lists(st.integers(2, most), min_size=1, max_size=3))

    def column(values: st.SearchStrategy[float]) -> list[list[float]]:
        return [draw(st.lists(values, min_size=n, max_size=n)) for n in sizes]

    rewards = [draw(st.lists(st.integers(-9, 9).map(float), min_size=n, max_size=n, unique=True)) for n in sizes]
    return batch_of(column(logp), rewards, column(logp), column(st.integers(1, 40).map(float)))


def shifted(batch: PreferenceBatch, by: float) -> PreferenceBatch:
    return PreferenceBatch(batch.policy_logps_BN + by, batch.reference_logps_BN, batch.lengths_BN, batch.rewards_BN, batch.mask_BN)


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# ----------------------------------------------------------------------------------------------------------- invariances


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
SHIFT_INVARIANT = {"dpo", "r_dpo", "cdpo", "robust_dpo", "ipo", "exo", "dpo_pl", "lire"}


@each_loss
@for_all(batch=ragged(), by=st.floats(-5, 5))
def test_a_constant_on_all_log_ratios_of_a_record_changes_nothing(variant: str, batch: PreferenceBatch, by: float) -> None:
    if variant.split()[0] in SHIFT_INVARIANT:
        same(VARIANTS[variant](shifted(batch, by)), VARIANTS[variant](batch))


@each_loss
def test_which_losses_a_constant_does_change(variant: str) -> None:
    """Per-token losses with unequal lengths, those with an SFT term, and the binary ones: they have an absolute zero."""
    batch = batch_of([[-1.0, -2.0, -1.5]], [[2.0, 0.0, 1.0]], None, [[3.0, 8.0, 5.0]])
    changed = not torch.allclose(VARIANTS[variant](shifted(batch, 1.0)), VARIANTS[variant](batch))
    assert changed is (variant.split()[0] not in SHIFT_INVARIANT)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.split()[0] not in ("lire", "pro")])
@for_all(batch=ragged())
def test_only_the_order_of_rewards_matters(variant: str, batch: PreferenceBatch) -> None:
    monotone = PreferenceBatch(
        batch.policy_logps_BN, batch.reference_logps_BN, batch.lengths_BN, (batch.rewards_BN / 4).exp() * 3 - 7, batch.mask_BN
    )
    same(VARIANTS[variant](monotone), VARIANTS[variant](batch))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.split()[0] in ("simpo", "lire", "rrhf", "pro")])
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


# ------------------------------------------------------------------------------------------------------------ identities


@for_all(batch=ragged(most=2), beta=st.floats(0.01, 5))
def test_plackett_luce_of_two_is_dpo(batch: PreferenceBatch, beta: float) -> None:
    same(parse_loss({"name": "dpo_pl", "beta": beta})(batch), parse_loss({"name": "dpo", "beta": beta})(batch))


@pytest.mark.parametrize("name", PAIRWISE)
@for_all(batch=ragged(most=2))
def test_all_pairs_of_two_is_best_worst(name: str, batch: PreferenceBatch) -> None:
    same(VARIANTS[f"{name} on all pairs"](batch), VARIANTS[name](batch))


@pytest.mark.parametrize("name", sorted(set(PAIRWISE) - {"rpo"}))  # rpo's SFT term stays on the list's best response
@for_all(batch=ragged())
def test_all_pairs_is_the_mean_over_pairs(name: str, batch: PreferenceBatch) -> None:
    for row in range(len(batch.mask_BN)):
        record = [getattr(batch, f)[row][batch.mask_BN[row]] for f in ("policy_logps_BN", "rewards_BN", "reference_logps_BN", "lengths_BN")]
        pairs = torch.combinations(torch.arange(len(record[0])))
        each = VARIANTS[name](batch_of(*([column[pair].tolist() for pair in pairs] for column in record)))
        same(VARIANTS[f"{name} on all pairs"](batch)[row], each.mean())


EQUAL_TO_DPO = [
    {"name": "robust_dpo", "epsilon": 0.0},
    {"name": "cdpo", "epsilon": 0.0},
    {"name": "rpo", "sft_weight": 0.0},
    {"name": "r_dpo", "length_penalty": 0.0},
]


@pytest.mark.parametrize("parameters", EQUAL_TO_DPO, ids=lambda p: p["name"])
@pytest.mark.parametrize("pairs", ["best_worst", "all"])
@for_all(batch=ragged())
def test_without_its_extra_a_relative_is_dpo(parameters: dict[str, Any], pairs: str, batch: PreferenceBatch) -> None:
    same(parse_loss(parameters | {"pairs": pairs})(batch), parse_loss({"name": "dpo", "pairs": pairs})(batch))


@for_all(batch=ragged(most=2), epsilon=st.floats(0, 0.45))
def test_robust_dpo_is_unbiased_under_flips(batch: PreferenceBatch, epsilon: float) -> None:
    """E over flips of probability ε of rDPO's ℓ = DPO's ℓ on the clean preference (arXiv 2403.00409)."""
    loss = parse_loss({"name": "robust_dpo", "epsilon": epsilon})
    flipped = PreferenceBatch(batch.policy_logps_BN, batch.reference_logps_BN, batch.lengths_BN, -batch.rewards_BN, batch.mask_BN)
    same((1 - epsilon) * loss(batch) + epsilon * loss(flipped), parse_loss("dpo")(batch))


@for_all(batch=ragged(most=2), delta=st.floats(-5, 5))
def test_bco_bounds_dpo_from_above_at_every_delta(batch: PreferenceBatch, delta: float) -> None:
    """arXiv 2404.04656: −log σ(r_w − r_l) < −log σ(r_w − δ) − log σ(δ − r_l); ours is half of the right side."""
    assert (2 * parse_loss({"name": "bco", "fixed_delta": delta})(batch) > parse_loss("dpo")(batch)).all()


@for_all(batch=ragged(most=2), delta=st.floats(-3, 3))
def test_shifting_all_rewards_by_delta_is_what_delta_does(batch: PreferenceBatch, delta: float) -> None:
    at_delta = parse_loss({"name": "bco", "fixed_delta": delta})(shifted(batch, delta / 0.1))
    same(at_delta, parse_loss("bco")(batch))


@for_all(batch=ragged(most=2))
def test_lire_of_two_far_apart_rewards_is_minus_the_policy_s_choice(batch: PreferenceBatch) -> None:
    """softmax(r) → one-hot: ℓ → −softmax(log π / T) at the winner, which is −e^−dpo of the policy alone at β = 1/T."""
    zeros = torch.zeros_like(batch.reference_logps_BN)
    sharp = PreferenceBatch(batch.policy_logps_BN, zeros, batch.lengths_BN, batch.rewards_BN * 1e3, batch.mask_BN)
    same(parse_loss("lire")(sharp), -(-parse_loss({"name": "dpo", "beta": 0.5})(sharp)).exp())


# ---------------------------------------------------------------------------------------------------------------- optima

OPTIMA = [
    ({"name": "ipo", "beta": 0.25}, 1 / (2 * 0.25)),
    ({"name": "exo", "beta": 0.5, "epsilon": 0.1}, math.log(0.9 / 0.1) / 0.5),
    ({"name": "cdpo", "beta": 0.5, "epsilon": 0.1}, math.log(0.9 / 0.1) / 0.5),
]


@pytest.mark.parametrize(("parameters", "margin"), OPTIMA, ids=lambda x: x["name"] if isinstance(x, dict) else "")
def test_minimum_is_at_its_finite_margin(parameters: dict[str, Any], margin: float) -> None:
    """IPO: lr_w − lr_l = 1/(2β). EXO and cDPO: σ(β(lr_w − lr_l)) = 1 − ε."""
    loss = parse_loss(parameters)
    batch = batch_of([[margin, 0.0]], [[1.0, 0.0]])
    policy = batch.policy_logps_BN.requires_grad_()
    lowest = loss(batch)
    lowest.sum().backward()
    assert policy.grad.abs().max().item() < 1e-12
    for other in (-5.0, 0.0, margin - 0.1, margin + 0.1, margin + 5.0):
        assert loss(batch_of([[other, 0.0]], [[1.0, 0.0]])).item() > lowest.item()


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.split()[0] not in ("ipo", "exo", "cdpo")])
@for_all(batch=ragged(most=2))
def test_a_more_likely_winner_is_never_worse(variant: str, batch: PreferenceBatch) -> None:
    """Without a finite optimum the gradient at the preferred response is never positive, at the other never negative."""
    policy = batch.policy_logps_BN.requires_grad_()
    VARIANTS[variant](batch).sum().backward()
    best, worst = batch.best_worst
    assert (policy.grad.gather(1, best[:, None]) <= 0).all()
    assert (policy.grad.gather(1, worst[:, None]) >= 0).all()


@for_all(margin=st.floats(50, 500))
def test_robust_dpo_has_no_floor(margin: float) -> None:
    """As its offset says: ≈ −ε·m/(1−2ε)."""
    loss = parse_loss({"name": "robust_dpo", "beta": 1.0, "epsilon": 0.2})
    assert loss(batch_of([[margin, 0.0]], [[1.0, 0.0]])).item() == pytest.approx(-0.2 * margin / 0.6)

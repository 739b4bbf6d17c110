"""DPO and its relatives: arithmetic by hand, the independent reference, identities."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dora_core.losses import PreferenceBatch, parse_loss
from tests.dora_core.batches import batch_of, for_all, ragged, same, value
from tests.dora_core.losses.reference import compare_precisions, compare_with_reference

LOG2 = math.log(2.0)

PARAMETERS: list[dict[str, Any]] = [
    {"name": "dpo"},
    {"name": "r_dpo"},
    {"name": "ln_dpo"},
    {"name": "simpo"},
    {"name": "rpo"},
    {"name": "dpo", "beta": 0.7, "pairs": "all"},
    {"name": "r_dpo", "beta": 0.3, "length_penalty": 0.05, "pairs": "all"},
    {"name": "ln_dpo", "beta": 2.0, "pairs": "all"},
    {"name": "simpo", "beta": 3.0, "gamma_beta_ratio": 0.2, "pairs": "all"},
    {"name": "rpo", "beta": 0.4, "sft_weight": 0.3, "pairs": "all"},
    {"name": "chi_po"},
    {"name": "chi_po", "beta": 0.02, "largest_reward": 0.4, "pairs": "all"},
]


def test_dpo() -> None:
    # lr_w = −10 − (−12) = 2, lr_l = −9 − (−8) = −1; β = 0.5: −log σ(0.5·(2 − (−1))) = log(1 + e^−1.5) = 0.201413
    assert value({"name": "dpo", "beta": 0.5}, [[-10.0, -9.0]], [[1.0, 0.0]], [[-12.0, -8.0]]) == pytest.approx(0.2014132779827524)


def test_r_dpo_asks_less_of_a_longer_winner() -> None:
    # lr = (2, −1), |y| = (30, 10), β = .5, a = .02: 0.5·3 + 0.02·(30 − 10) = 1.9: log(1 + e^−1.9) = 0.139387; dpo: 0.201413
    loss = {"name": "r_dpo", "beta": 0.5, "length_penalty": 0.02}
    assert value(loss, [[2.0, -1.0]], [[1.0, 0.0]], None, [[30.0, 10.0]]) == pytest.approx(0.1393867583)
    # a shorter winner: 1.5 − 0.4 = 1.1: log(1 + e^−1.1) = 0.287335, so its log-ratio is pushed up harder
    assert value(loss, [[2.0, -1.0]], [[1.0, 0.0]], None, [[10.0, 30.0]]) == pytest.approx(0.2873353251)


def test_ln_dpo() -> None:
    # lr/|y| = 2/4 = .5 and −1/10 = −.1; β = 5: 5·0.6 = 3: log(1 + e^−3) = 0.048587
    assert value("ln_dpo", [[2.0, -1.0]], [[1.0, 0.0]], None, [[4.0, 10.0]]) == pytest.approx(0.0485873516)


def test_simpo_has_no_reference() -> None:
    # p = −6/4 = −1.5 and −30/10 = −3; β = 2, γ = .5·2 = 1: 2·1.5 − 1 = 2: log(1 + e^−2) = 0.126928
    for reference in ([[-1.0, -2.0]], [[-9.0, 5.0]]):
        assert value("simpo", [[-6.0, -30.0]], [[1.0, 0.0]], reference, [[4.0, 10.0]]) == pytest.approx(0.1269280110)


def test_simpo_of_equally_likely_responses() -> None:
    # p_w = p_l: −log σ(−γ) = log(1 + e^γ), γ = γ/β · β = 0.25·4 = 1: log(1 + e) = 1.313262
    assert value({"name": "simpo", "beta": 4.0, "gamma_beta_ratio": 0.25}, [[-4.0, -4.0]], [[1.0, 0.0]]) == pytest.approx(1.3132616875)


def test_rpo() -> None:
    # lr = (−2 + 4, −9 + 8) = (2, −1), β = .1: log(1 + e^−0.3) = 0.554355; SFT: 2 nats / 4 tokens = 0.5, α = 2: + 1
    loss = {"name": "rpo", "sft_weight": 2.0}
    assert value(loss, [[-2.0, -9.0]], [[1.0, 0.0]], [[-4.0, -8.0]]) == pytest.approx(0.5543552445 + 1.0)


def test_chi_po() -> None:
    # r_w = 3, r_l = ½: φ = 3 + log 3 and ½ − log 2; β = .2: m = .2·(2.5 + log 6) = 0.858352: log(1 + e^−m)
    margin = 0.2 * (2.5 + math.log(6.0))
    loss = {"name": "chi_po", "beta": 0.2}
    assert value(loss, [[math.log(3.0), -math.log(2.0)]], [[1.0, 0.0]]) == pytest.approx(math.log1p(math.exp(-margin)))
    # R = .4: clipped at .8
    assert value(loss | {"largest_reward": 0.4}, [[math.log(3.0), -math.log(2.0)]], [[1.0, 0.0]]) == pytest.approx(
        math.log1p(math.exp(-0.8))
    )


def test_chi_po_has_no_gradient_beyond_its_clip_and_no_overflow() -> None:
    batch = batch_of([[500.0, 0.0], [0.0, 500.0], [0.5, 0.0]], [[1.0, 0.0]] * 3)
    policy = batch.policy_logps_BN.requires_grad_()
    losses = parse_loss("chi_po")(batch)
    losses.sum().backward()
    assert losses.tolist()[:2] == pytest.approx([math.log1p(math.exp(-10)), math.log1p(math.exp(10))])
    assert not policy.grad[:2].any() and policy.grad[2].all()


EQUAL_TO_DPO = [{"name": "rpo", "sft_weight": 0.0}, {"name": "r_dpo", "length_penalty": 0.0}]


@pytest.mark.parametrize("parameters", EQUAL_TO_DPO, ids=lambda p: p["name"])
@pytest.mark.parametrize("pairs", ["best_worst", "all"])
@for_all(batch=ragged())
def test_without_its_extra_a_relative_is_dpo(parameters: dict[str, Any], pairs: str, batch: PreferenceBatch) -> None:
    same(parse_loss(parameters | {"pairs": pairs})(batch), parse_loss({"name": "dpo", "pairs": pairs})(batch))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("dpo", LOG2),
        ({"name": "r_dpo", "length_penalty": 0.01}, math.log1p(math.exp(-0.01 * (9 - 4)))),
        ("ln_dpo", LOG2),
        ("rpo", LOG2 + 3.0 / 9),
        ("chi_po", LOG2),
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

"""Each loss against arithmetic written out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dora_core.losses import parse_loss
from tests.dora_core.batches import NAN, batch_of

LOG2 = math.log(2.0)


def softplus(x: float) -> float:
    """−log σ(−x)."""
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def value(loss: Any, *columns: Any) -> float:
    return parse_loss(loss)(batch_of(*columns)).item()


# ------------------------------------------------------------------------------------------------------------- logistic


def test_dpo() -> None:
    # lr_w = −10 − (−12) = 2, lr_l = −9 − (−8) = −1; β = 0.5: −log σ(0.5·(2 − (−1))) = log(1 + e^−1.5) = 0.201413
    assert value({"name": "dpo", "beta": 0.5}, [[-10.0, -9.0]], [[1.0, 0.0]], [[-12.0, -8.0]]) == pytest.approx(0.2014132779827524)


def test_dpo_takes_best_and_worst_of_a_list_in_any_order() -> None:
    # rewards (2, 5, −1): winner is response 1 (lr 3), loser response 2 (lr 1): −log σ(0.1·2) = log(1 + e^−0.2)
    assert value("dpo", [[10.0, 3.0, 1.0]], [[2.0, 5.0, -1.0]]) == pytest.approx(math.log1p(math.exp(-0.2)))


def test_all_pairs_is_the_mean_over_strict_preferences() -> None:
    # lr = (3, 1, 0), rewards (2, 1, 1): strict pairs (0,1) and (0,2), the tie (1,2) is none: mean of softplus(−2β), softplus(−3β)
    expected = (softplus(-2.0) + softplus(-3.0)) / 2
    assert value({"name": "dpo", "beta": 1.0, "pairs": "all"}, [[3.0, 1.0, 0.0]], [[2.0, 1.0, 1.0]]) == pytest.approx(expected)


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


# ---------------------------------------------------------------------------------------------------------- label noise


def test_cdpo() -> None:
    # m = 1·(1 − 0) = 1, ε = .2: 0.8·log(1 + e^−1) + 0.2·log(1 + e) = 0.8·0.313262 + 0.2·1.313262 = 0.513262
    assert value({"name": "cdpo", "beta": 1.0, "epsilon": 0.2}, [[1.0, 0.0]], [[1.0, 0.0]]) == pytest.approx(0.5132616875)


def test_robust_dpo() -> None:
    # m = 1, ε = .2: (0.8·0.313262 − 0.2·1.313262) / 0.6 = (0.250609 − 0.262652) / 0.6 = −0.020072
    assert value({"name": "robust_dpo", "beta": 1.0, "epsilon": 0.2}, [[1.0, 0.0]], [[1.0, 0.0]]) == pytest.approx(-0.0200716458)


# -------------------------------------------------------------------------------------------------------- finite margin


def test_ipo() -> None:
    # lr_w − lr_l = 3, 1/(2β) = 5 at β = .1: (3 − 5)² = 4
    assert value("ipo", [[2.0, -1.0]], [[1.0, 0.0]]) == pytest.approx(4.0)


def test_exo() -> None:
    # β·Δ = log 3: s = 3/4. ε = 1/4: s = 1 − ε, the minimum: 0. ε = 1/10: ¾·log(.75/.9) + ¼·log(.25/.1)
    lr = [[math.log(3.0), 0.0]]
    assert value({"name": "exo", "beta": 1.0, "epsilon": 0.25}, lr, [[1.0, 0.0]]) == pytest.approx(0.0, abs=1e-12)
    expected = 0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(2.5)  # = −0.136741 + 0.229073 = 0.092332
    assert value({"name": "exo", "beta": 1.0, "epsilon": 0.1}, lr, [[1.0, 0.0]]) == pytest.approx(expected)


# --------------------------------------------------------------------------------------------------------------- binary


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


# ------------------------------------------------------------------------------------------------------------- listwise


def test_plackett_luce() -> None:
    # β·lr best first = (1, 0, −1): log(e + 1 + 1/e) − 1  +  log(1 + 1/e) − 0  +  0 = 0.407606 + 0.313262 = 0.720868
    expected = 0.40760596444438 + 0.31326168751822
    assert value({"name": "dpo_pl", "beta": 1.0}, [[-1.0, 1.0, 0.0]], [[1.0, 3.0, 2.0]]) == pytest.approx(expected)


def test_plackett_luce_with_a_tie() -> None:
    # β·lr = (log 2, 0, 0), rewards (2, 1, 1): the best against both: log(2 + 1 + 1) − log 2 = log 2; the tied two beat nobody: 0
    assert value({"name": "dpo_pl", "beta": 1.0}, [[LOG2, 0.0, 0.0]], [[2.0, 1.0, 1.0]]) == pytest.approx(LOG2)


def test_lire() -> None:
    # T = 2, log π = (0, −2 log 3): softmax(0, −log 3) = (3/4, 1/4). r = (log 4, 0): softmax = (4/5, 1/5). ℓ = −(0.6 + 0.05) = −0.65
    assert value("lire", [[0.0, -2 * math.log(3.0)]], [[math.log(4.0), 0.0]]) == pytest.approx(-0.65)


def test_lire_leaves_unmeasured_responses_out() -> None:
    assert value("lire", [[0.0, 5.0, -2 * math.log(3.0)]], [[math.log(4.0), NAN, 0.0]]) == pytest.approx(-0.65)


def test_rrhf() -> None:
    # p = (−8/4, −6/6, −15/5) = (−2, −1, −3), rewards (2, 1, 0). Inversions: p_1 − p_0 = 1; p_2 − p_0 = −1 and p_2 − p_1 = −2 are none.
    # ℓ = 1 − 1·(−2) = 3
    assert value("rrhf", [[-8.0, -6.0, -15.0]], [[2.0, 1.0, 0.0]], None, [[4.0, 6.0, 5.0]]) == pytest.approx(3.0)


def test_rrhf_pairs_count_each_and_ties_do_not() -> None:
    # p = (−3, −2, −1), sft 0: rewards (2, 1, 0): 1 + 2 + 1 = 4; rewards (2, 1, 1): 1 + 2 = 3
    loss = {"name": "rrhf", "sft_weight": 0.0}
    logps = [[-12.0, -8.0, -4.0]]
    assert value(loss, logps, [[2.0, 1.0, 0.0]]) == pytest.approx(4.0)
    assert value(loss, logps, [[2.0, 1.0, 1.0]]) == pytest.approx(3.0)


def test_pro() -> None:
    # p = (−1, −2, −1), rewards (3, 2, 0). k = 0: gaps 1 and 3, own weight 3: log(e^−3 + e^(1·−2) + e^(3·−1)) + 3
    #   = log(e^0 + e^1 + e^0) = log(2 + e) = 1.551445
    # k = 1: gap 2, own 2: log(e^−4 + e^−2) + 4 = log(1 + e^2) = 2.126928.   k = 2: nothing below: 0
    # SFT: w = .1, N − 1 = 2: 0.1·4·4 nats (the sum over 4 tokens) = 1.6
    loss = {"name": "pro", "sft_weight": 0.1}
    expected = math.log(2 + math.e) + math.log(1 + math.e**2) + 1.6
    assert value(loss, [[-4.0, -8.0, -4.0]], [[3.0, 2.0, 0.0]]) == pytest.approx(expected)


# --------------------------------------------------------------------------------------------------- the stated offsets


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("dpo", LOG2),
        ({"name": "r_dpo", "length_penalty": 0.01}, math.log1p(math.exp(-0.01 * (9 - 4)))),
        ("ln_dpo", LOG2),
        ("rpo", LOG2 + 3.0 / 9),
        ("cdpo", LOG2),
        ("robust_dpo", LOG2),
        ("ipo", 25.0),
        ("exo", -LOG2 - math.log(0.001 * 0.999) / 2),
        ("kto", 0.5),
        ("bco", LOG2),
        ("dpo_pl", LOG2),
        ("lire", -0.5),
    ],
    ids=str,
)
def test_offset_at_the_reference(loss: Any, expected: float) -> None:
    assert value(loss, [[-3.0, -3.0]], [[1.0, 0.0]], [[-3.0, -3.0]], [[9.0, 4.0]]) == pytest.approx(expected)


def test_plackett_luce_at_the_reference_is_log_factorial() -> None:
    assert value("dpo_pl", [[0.0] * 5], [[5.0, 4.0, 3.0, 2.0, 1.0]]) == pytest.approx(math.log(math.factorial(5)))


def test_minimum_of_cdpo_is_the_entropy_it_states() -> None:
    margin = torch.tensor([[math.log(9.0), 0.0]], dtype=torch.float64)
    assert value({"name": "cdpo", "beta": 1.0}, margin.tolist(), [[1.0, 0.0]]) == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))

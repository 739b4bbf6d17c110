"""IPO, EXO, hinge and SPPO: arithmetic by hand, the independent reference, the position of the minimum."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from dora_core.losses import parse_loss
from tests.dora_core.batches import batch_of, value
from tests.dora_core.losses.reference import compare_precisions, compare_with_reference

LOG2 = math.log(2.0)

PARAMETERS: list[dict[str, Any]] = [
    {"name": "ipo"},
    {"name": "exo"},
    {"name": "ipo", "beta": 0.5, "pairs": "all"},
    {"name": "exo", "beta": 0.8, "epsilon": 0.2, "pairs": "all"},
    {"name": "hinge"},
    {"name": "hinge", "beta": 0.3, "pairs": "all"},
    {"name": "sppo", "beta": 0.1},
    {"name": "sppo", "beta": 0.5, "pairs": "all"},
]


def test_ipo() -> None:
    # lr_w − lr_l = 3, 1/(2β) = 5 at β = .1: (3 − 5)² = 4
    assert value("ipo", [[2.0, -1.0]], [[1.0, 0.0]]) == pytest.approx(4.0)


def test_exo() -> None:
    # β·Δ = log 3: s = 3/4. ε = 1/4: s = 1 − ε, the minimum: 0. ε = 1/10: ¾·log(.75/.9) + ¼·log(.25/.1)
    lr = [[math.log(3.0), 0.0]]
    assert value({"name": "exo", "beta": 1.0, "epsilon": 0.25}, lr, [[1.0, 0.0]]) == pytest.approx(0.0, abs=1e-12)
    expected = 0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(2.5)  # = −0.136741 + 0.229073 = 0.092332
    assert value({"name": "exo", "beta": 1.0, "epsilon": 0.1}, lr, [[1.0, 0.0]]) == pytest.approx(expected)


def test_hinge() -> None:
    # β = .25: 1 − .25·(2 + 1) = .25; beyond a margin of 4 nats nothing is left
    assert value({"name": "hinge", "beta": 0.25}, [[2.0, -1.0]], [[1.0, 0.0]]) == pytest.approx(0.25)
    assert value({"name": "hinge", "beta": 0.25}, [[3.0, -1.5]], [[1.0, 0.0]]) == 0.0


def test_sppo() -> None:
    # 1/(2β) = 2 at β = .25: (3 − 2)² + (−1 + 2)² = 2; 0 at log-ratios of ±2
    assert value({"name": "sppo", "beta": 0.25}, [[3.0, -1.0]], [[1.0, 0.0]]) == pytest.approx(2.0)
    assert value({"name": "sppo", "beta": 0.25}, [[2.0, -2.0]], [[1.0, 0.0]]) == 0.0


@pytest.mark.parametrize("q", [0.5, 0.7, 1.0])
def test_a_soft_label_moves_the_targets_of_sppo(q: float) -> None:
    """The paper's loss at P(y_w ≻ y_l) = q has targets ±(q − ½)/β; the expectation over labels adds 2q(1 − q)/β²."""
    loss, lr, beta = parse_loss({"name": "sppo", "beta": 0.25}), (0.7, -1.3), 0.25
    batch = dataclasses.replace(batch_of([list(lr)], [[1.0, 0.0]]), label_probability_B=torch.tensor([q], dtype=torch.float64))
    paper = (lr[0] - (q - 0.5) / beta) ** 2 + (lr[1] - ((1 - q) - 0.5) / beta) ** 2
    assert loss(batch).item() == pytest.approx(paper + 2 * q * (1 - q) / beta**2)


OPTIMA = [({"name": "ipo", "beta": 0.25}, 1 / (2 * 0.25)), ({"name": "exo", "beta": 0.5, "epsilon": 0.1}, math.log(0.9 / 0.1) / 0.5)]


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


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("ipo", 25.0),
        ("exo", -LOG2 - math.log(0.001 * 0.999) / 2),
        ("hinge", 1.0),
        ("sppo", 5e5),
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

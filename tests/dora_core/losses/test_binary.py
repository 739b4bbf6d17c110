"""KTO and BCO at fixed reference points: arithmetic by hand, the independent reference, bounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import strategies as st

from dora_core.losses import PreferenceBatch, parse_loss
from tests.dora_core.batches import for_all, ragged, same, shifted, value
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

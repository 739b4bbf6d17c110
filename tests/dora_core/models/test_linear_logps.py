"""The fused log-probabilities equal log_softmax of all logits, and so do their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dora_core.models import linear_logps as module
from dora_core.models.linear_logps import LogitTransform, linear_log_collisions, linear_logps

T, H, V = 13, 8, 37


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((T, H), (V, H), (V,)))
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), torch.randint(V, (T,), generator=generator)


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    return F.linear(hidden, weight, bias).log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1)


def blocks_of(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_BLOCK", size)
    monkeypatch.setitem(module.BLOCK_LOGITS, "cpu", 1)


@pytest.mark.parametrize("block", [1, 10, 100])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients(block: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks_of(block, monkeypatch)
    *parameters, targets = inputs()
    parameters = parameters if with_bias else [*parameters[:2], None]
    upstream = torch.linspace(-2.0, 3.0, T, dtype=torch.float64)
    found = []
    for function in (plain, linear_logps):
        logps = function(*parameters, targets)
        wanted = [p for p in parameters if p is not None]
        found.append((logps.detach(), *torch.autograd.grad((logps * upstream).sum(), wanted)))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [1, 10, 100])
@pytest.mark.parametrize("transform", [LogitTransform(cap=1.5), LogitTransform(scale=1 / 16), LogitTransform(scale=3.0, cap=2.0)])
def test_scaled_and_capped_logits(transform: LogitTransform, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """cap·tanh(scale·z/cap), written out: values, gradients and collisions."""
    blocks_of(block, monkeypatch)
    *parameters, targets = inputs()
    hidden, weight, bias = parameters
    logits = F.linear(hidden, weight, bias) * transform.scale
    logits = logits if transform.cap is None else transform.cap * torch.tanh(logits / transform.cap)
    upstream = torch.linspace(-2.0, 3.0, T, dtype=torch.float64)
    found = []
    for logps in (logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1), linear_logps(*parameters, targets, transform)):
        found.append((logps.detach(), *torch.autograd.grad((logps * upstream).sum(), parameters)))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    collisions = logits.softmax(-1).square().sum(-1).log().detach()
    torch.testing.assert_close(linear_log_collisions(*parameters[:3], transform), collisions, rtol=1e-12, atol=1e-12)


def test_finite_differences() -> None:
    *parameters, targets = inputs()
    assert torch.autograd.gradcheck(linear_logps, (*parameters, targets))


def test_a_frozen_embedding_costs_no_gradient() -> None:
    hidden, weight, _, targets = inputs()
    weight.requires_grad_(False)
    (expected,) = torch.autograd.grad(plain(hidden, weight, None, targets).sum(), hidden)
    linear_logps(hidden, weight, None, targets).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-12, atol=1e-12)


def test_bfloat16_sums_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """4,000 blocks of one token, all alike: a normaliser or a gradient summed in bfloat16 would stop growing long before the end."""
    blocks_of(1, monkeypatch)
    vocabulary = 4000
    hidden = torch.ones(3, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(vocabulary, 1, dtype=torch.bfloat16)
    weight[1:] = 1.0  # the target has logit 0, the others 1
    logps = linear_logps(hidden, weight, None, torch.zeros(3, dtype=torch.long))
    logps.sum().backward()
    others = (vocabulary - 1) * math.e
    assert logps.dtype == torch.float32 and hidden.grad.dtype == torch.bfloat16
    assert logps.tolist() == pytest.approx([-math.log(1 + others)] * 3, rel=1e-5)
    # d logp / d hidden = w_target − Σ_v p_v w_v = − others / (1 + others)
    assert hidden.grad.flatten().tolist() == pytest.approx([-others / (1 + others)] * 3, rel=2**-7)


def test_autocast_works_in_its_dtype_and_returns_float32() -> None:
    *parameters, targets = inputs(torch.float32)
    expected = plain(*parameters, targets)
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_logps(*parameters, targets)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)
    got.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in parameters)


@pytest.mark.parametrize("block", [1, 10, 100])
@pytest.mark.parametrize("with_bias", [True, False])
def test_log_collisions(block: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """log Σ_v π(v)², whatever the blocks; two tokens of ½ each coincide with probability ½."""
    blocks_of(block, monkeypatch)
    hidden, weight, bias, _ = inputs()
    bias = bias if with_bias else None
    expected = F.linear(hidden, weight, bias).softmax(dim=-1).square().sum(dim=-1).log()
    found = linear_log_collisions(hidden, weight, bias)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)
    assert not found.requires_grad
    even = linear_log_collisions(torch.ones(1, 1, dtype=torch.float64), torch.tensor([[0.0], [0.0], [-1e4]], dtype=torch.float64), None)
    assert even.item() == pytest.approx(math.log(0.5))

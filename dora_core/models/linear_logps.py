"""Log-probability of one token per position, from hidden states and the output embedding, without the logits.

The vocabulary is worked through in blocks: a block's logits live only while it is worked on, and the backward pass computes them again.
Kept between the two is one number per position, its log-sum-exp. Every row of the embedding is read once per pass, however many
positions there are, and every row of its gradient is written once, by one product over all positions.

Legend: T positions, H width, V vocabulary, B tokens of a vocabulary block.

Left out: skipping blocks of negligible probability (cut-cross-entropy, arXiv 2411.09009), which is not exact in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK_LOGITS = {"cpu": 2**21, "cuda": 2**26}
"""Logits alive at once, by device: 8 MiB in float32 stay in a processor's cache; 256 MiB keep a GPU busy."""
LEAST_BLOCK = 128


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to the output of its embedding, z ↦ cap·tanh(scale·z/cap), or scale·z without a cap.

    Gemma 2 caps (arXiv 2408.00118, section 2); Cohere multiplies by ``logit_scale``; Granite divides by ``logits_scaling``.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """The model's logits, of any shape."""
        scaled = logits if self.scale == 1.0 else logits * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap

    def chain_(self, grad: Tensor, logits: Tensor | None) -> Tensor:
        """Gradient by the embedding's output from that by the logits, in place; d cap·tanh(u/cap)/du = 1 − (logits/cap)².

        ``logits`` are overwritten, and only needed with a cap.
        """
        if self.cap is not None and logits is not None:
            grad.mul_(logits.div_(self.cap).square_().neg_().add_(1.0))
        return grad if self.scale == 1.0 else grad.mul_(self.scale)


PLAIN = LogitTransform()


def linear_logps(
    hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_T: Tensor, transform: LogitTransform = PLAIN
) -> Tensor:
    """log softmax(transform(hidden·weightᵀ + bias))[target] of each position, shape (T,), differentiable in all three tensors.

    Products run in the dtype of ``hidden_TH`` (under autocast in its dtype); softmax, sums over blocks and the result are
    float32 (float64 for float64 inputs).
    """
    if torch.is_autocast_enabled(hidden_TH.device.type):
        dtype = torch.get_autocast_dtype(hidden_TH.device.type)
        hidden_TH, weight_VH = hidden_TH.to(dtype), weight_VH.to(dtype)
        bias_V = None if bias_V is None else bias_V.to(dtype)
    with torch.autocast(hidden_TH.device.type, enabled=False):
        logps_T: Tensor = _LinearLogps.apply(hidden_TH, weight_VH, bias_V, targets_T, transform)  # type: ignore[no-untyped-call]
        return logps_T


@torch.no_grad()
def linear_log_collisions(hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, transform: LogitTransform = PLAIN) -> Tensor:
    """log Σ_v π(v)² of each position, shape (T,), without gradient: the log-probability that two draws of a token coincide.

    A pass of its own over the blocks of the vocabulary, in the dtypes of :func:`linear_logps`.
    """
    if torch.is_autocast_enabled(hidden_TH.device.type):
        dtype = torch.get_autocast_dtype(hidden_TH.device.type)
        hidden_TH, weight_VH = hidden_TH.to(dtype), weight_VH.to(dtype)
        bias_V = None if bias_V is None else bias_V.to(dtype)
    wide = torch.promote_types(hidden_TH.dtype, torch.float32)
    with torch.autocast(hidden_TH.device.type, enabled=False):
        normalizer_T = hidden_TH.new_full((len(hidden_TH),), -torch.inf, dtype=wide)
        squares_T = normalizer_T.clone()
        for block in _slices(len(weight_VH), len(hidden_TH), hidden_TH.device):
            logits_TB = transform(_logits(hidden_TH, weight_VH, bias_V, block, wide))
            normalizer_T = torch.logaddexp(normalizer_T, logits_TB.logsumexp(dim=1))
            squares_T = torch.logaddexp(squares_T, (2 * logits_TB).logsumexp(dim=1))
    return squares_T - 2 * normalizer_T


class _LinearLogps(torch.autograd.Function):
    """The function with its own backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_T: Tensor, transform: LogitTransform
    ) -> Tensor:
        wide = torch.promote_types(hidden_TH.dtype, torch.float32)
        normalizer_T = hidden_TH.new_full((len(hidden_TH),), -torch.inf, dtype=wide)
        chosen_T = torch.zeros_like(normalizer_T)
        for block, rows, columns in _blocks(len(weight_VH), targets_T):
            logits_TB = transform(_logits(hidden_TH, weight_VH, bias_V, block, wide))
            normalizer_T = torch.logaddexp(normalizer_T, logits_TB.logsumexp(dim=1))
            chosen_T[rows] = logits_TB[rows, columns]
        ctx.save_for_backward(hidden_TH, weight_VH, bias_V, targets_T, normalizer_T)
        ctx.transform = transform
        return chosen_T - normalizer_T

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden_TH, weight_VH, bias_V, targets_T, normalizer_T = ctx.saved_tensors
        wide, narrow = normalizer_T.dtype, weight_VH.dtype
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        transform: LogitTransform = ctx.transform
        grad_hidden_TH = torch.zeros_like(hidden_TH, dtype=wide) if needs_hidden else None
        grad_weight_VH = torch.empty_like(weight_VH) if needs_weight else None
        grad_bias_V = torch.empty_like(bias_V) if needs_bias else None
        for block, rows, columns in _blocks(len(weight_VH), targets_T):
            # d logp / d logits = onehot − softmax
            grad_TB = transform(_logits(hidden_TH, weight_VH, bias_V, block, wide))
            logits_TB = None if transform.cap is None else grad_TB.clone()
            grad_TB.sub_(normalizer_T[:, None]).exp_().mul_(-grad_T[:, None])
            grad_TB[rows, columns] += grad_T[rows]
            transform.chain_(grad_TB, logits_TB)
            if grad_bias_V is not None:
                grad_bias_V[block] = grad_TB.sum(dim=0)
            grad_TB = grad_TB.to(narrow)
            if grad_hidden_TH is not None and narrow == wide:
                grad_hidden_TH.addmm_(grad_TB, weight_VH[block])
            elif grad_hidden_TH is not None:
                grad_hidden_TH += grad_TB @ weight_VH[block]
            if grad_weight_VH is not None:
                torch.mm(grad_TB.T, hidden_TH, out=grad_weight_VH[block])
        return None if grad_hidden_TH is None else grad_hidden_TH.to(hidden_TH.dtype), grad_weight_VH, grad_bias_V, None, None


def _blocks(vocabulary: int, targets_T: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of the vocabulary, each with the positions whose target lies in it and the target's column there."""
    for block in _slices(vocabulary, len(targets_T), targets_T.device):
        rows = ((targets_T >= block.start) & (targets_T < block.stop)).nonzero().squeeze(1)
        yield block, rows, targets_T[rows] - block.start


def _slices(vocabulary: int, positions: int, device: torch.device) -> Iterator[slice]:
    """Blocks of the vocabulary, as large as :data:`BLOCK_LOGITS` allows."""
    size = max(LEAST_BLOCK, BLOCK_LOGITS.get(device.type, 2**24) // max(1, positions))
    for start in range(0, vocabulary, size):
        yield slice(start, min(start + size, vocabulary))


def _logits(hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, block: slice, wide: torch.dtype) -> Tensor:
    return F.linear(hidden_TH, weight_VH[block], None if bias_V is None else bias_V[block]).to(wide)

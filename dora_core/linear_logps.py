"""Log-probability of one token per position, from hidden states and the output embedding, without the logits.

The logits of a chunk of positions live only while the chunk is worked on; the backward pass computes them again. Kept between
the two is one number per position, its log-sum-exp.

Legend: T positions, H width, V vocabulary.

Left out: skipping vocabulary blocks of negligible probability (cut-cross-entropy, arXiv 2411.09009), which is not exact in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_LOGITS = 2**23
"""Logits alive at once: 32 MiB in float32, what a large cache or a corner of a GPU holds."""


def linear_logps(hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_T: Tensor) -> Tensor:
    """log softmax(hidden·weightᵀ + bias)[target] of each position, shape (T,), differentiable in all three.

    Products run in the dtype of ``hidden_TH`` (under autocast in its dtype); softmax, sums over positions and the result are
    float32 (float64 for float64 inputs).
    """
    if torch.is_autocast_enabled(hidden_TH.device.type):
        dtype = torch.get_autocast_dtype(hidden_TH.device.type)
        hidden_TH, weight_VH = hidden_TH.to(dtype), weight_VH.to(dtype)
        bias_V = None if bias_V is None else bias_V.to(dtype)
    with torch.autocast(hidden_TH.device.type, enabled=False):
        return _LinearLogps.apply(hidden_TH, weight_VH, bias_V, targets_T)


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_T: Tensor) -> Tensor:
        chunk = max(1, CHUNK_LOGITS // len(weight_VH))
        logps, normalizers = [], []
        for hidden_CH, targets_C in zip(hidden_TH.split(chunk), targets_T.split(chunk), strict=True):
            logits_CV = _logits(hidden_CH, weight_VH, bias_V)
            normalizers.append(_logsumexp(logits_CV))
            logps.append(logits_CV.gather(1, targets_C[:, None]).squeeze(1).to(normalizers[-1].dtype) - normalizers[-1])
        normalizer_T = torch.cat(normalizers)
        ctx.save_for_backward(hidden_TH, weight_VH, bias_V, targets_T, normalizer_T)
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        hidden_TH, weight_VH, bias_V, targets_T, normalizer_T = ctx.saved_tensors
        wide = normalizer_T.dtype
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_hidden_TH = torch.empty_like(hidden_TH) if needs_hidden else None
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=wide) if needs_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=wide) if needs_bias else None
        chunk = max(1, CHUNK_LOGITS // len(weight_VH))
        for start in range(0, len(hidden_TH), chunk):
            part = slice(start, start + chunk)
            # d logp / d logits = onehot − softmax
            grad_CV = _logits(hidden_TH[part], weight_VH, bias_V).to(wide)
            grad_CV.sub_(normalizer_T[part, None]).exp_().mul_(-grad_T[part, None])
            grad_CV.scatter_add_(1, targets_T[part, None], grad_T[part, None].to(wide))
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(dim=0)
            grad_CV = grad_CV.to(weight_VH.dtype)
            if grad_hidden_TH is not None:
                torch.mm(grad_CV, weight_VH, out=grad_hidden_TH[part])
            if grad_weight_VH is not None:
                _add_product(grad_weight_VH, grad_CV, hidden_TH[part])
        return (
            grad_hidden_TH,
            None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype),
            None if grad_bias_V is None else grad_bias_V.to(bias_V.dtype),
            None,
        )


def _logits(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    return F.linear(hidden_CH, weight_VH, bias_V)


def _logsumexp(logits_CV: Tensor) -> Tensor:
    """At least float32, shape (C,)."""
    wide = logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()
    return wide.logsumexp(dim=1)


def _add_product(sum_VH: Tensor, grad_CV: Tensor, hidden_CH: Tensor) -> None:
    """sum += gradᵀ·hidden, the sum in its own, wider dtype."""
    if sum_VH.dtype == grad_CV.dtype:
        sum_VH.addmm_(grad_CV.T, hidden_CH)
    else:
        sum_VH += grad_CV.T @ hidden_CH

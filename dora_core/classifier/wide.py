"""The log-linear part of a source classifier: hashed token n-grams and surface statistics, fitted to the optimum.

The log-ratio of two texts' densities adds up over their n-grams whenever one source is an exponential tilt of the other, so
logits here are *sums* over n-grams (no normalisation by length) plus a linear function of the surface statistics
(``text_statistics.py``). A penalised logistic regression on a few thousand rows is convex and costs a second;
stochastic steps on it stop far from the optimum.

Per head i, over the rows of golden ∪ source i:  Σ BCE(A·θ + b, golden) + λ_i/2·‖θ‖²,  minimised by L-BFGS over all heads at once. Each
λ_i is chosen by an inner cross-validation by prompt: the strongest whose log-loss is within one standard error (of the paired
difference) of the lowest (Breiman et al. 1984, §3.4.3). Few rows therefore mean a strong penalty, and without signal the logit is
near the constant log(N_golden/N_i).

Legend: N rows, S heads, D columns of the design (n-gram buckets in use, then surface regressors), F, B as in ``text_statistics.py``.
Left out: n-grams that occur in a single fitting row (nothing to learn from), interactions, and pretrained word vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dora_core.classifier.text_statistics import SurfaceBasis
from dora_core.models.ragged import Ragged

Floats = NDArray[np.float64]
BUCKETS = 2**16
PRIMES = (1, 1_000_003, 998_244_353)
# Weight of a 1-, 2-, 3-gram count beside a standardised regressor: with one λ for all, rare and numerous n-grams are shrunk more.
ORDER_WEIGHT = (0.3, 0.15, 0.15)
PENALTIES = (5000.0, 1500.0, 500.0, 150.0, 50.0, 15.0, 5.0, 1.5)
PATIENCE = 2  # penalties in a row without a better head before the path ends
INNER_FOLDS = 3
BIAS_PENALTY = 0.01  # towards the log-odds of the counts: bounded even if a class is missing
ITERATIONS = 80


@dataclass(frozen=True)
class Ngrams:
    """A sparse matrix (N, columns) by rows: entry j of row i is ``(index[j], weight[j])`` for ``start[i] ≤ j < start[i + 1]``."""

    index: Tensor
    weight: Tensor
    start: Tensor

    @classmethod
    def of(cls, texts: Ragged) -> Ngrams:
        """The n-grams of token sequences; columns are buckets. A row has its 1-grams first, then its 2-grams and 3-grams."""
        count_NO = np.maximum(texts.lengths[:, None] - np.arange(len(PRIMES)), 0)
        segment = np.concatenate([[0], np.cumsum(count_NO)])  # where the n-grams of a (row, order) begin
        begin_NO = segment[:-1].reshape(count_NO.shape)
        index, weight = np.empty(segment[-1], dtype=np.int64), np.empty(segment[-1], dtype=np.float32)
        row, position = np.repeat(np.arange(len(texts)), texts.lengths), texts.positions
        code = np.zeros_like(texts.values)
        for order, (prime, order_weight) in enumerate(zip(PRIMES, ORDER_WEIGHT, strict=True)):
            width = max(len(texts.values) - order, 0)
            code = (code[:width] * 31 + (texts.values[order:] + 1) * prime) % (2**31 - 1)
            inside = position[:width] < count_NO[row[:width], order]  # the others would reach into the next row
            place = begin_NO[row[:width][inside], order] + position[:width][inside]
            index[place], weight[place] = (code[inside] + order) % BUCKETS, order_weight
        return cls(torch.from_numpy(index), torch.from_numpy(weight), torch.from_numpy(segment[:: len(PRIMES)]))

    def times(self, matrix: Tensor) -> Tensor:
        """Product with (columns, S): (N, S)."""
        return F.embedding_bag(
            self.index, matrix, self.start, mode="sum", per_sample_weights=self.weight.to(matrix.dtype), include_last_offset=True
        )

    def transposed(self, columns: int) -> Ngrams:
        order = torch.argsort(self.index, stable=True)
        rows = torch.repeat_interleave(torch.arange(len(self.start) - 1), self.start.diff())
        start = torch.cumsum(torch.bincount(self.index, minlength=columns), 0)
        return Ngrams(rows[order], self.weight[order], torch.cat([torch.zeros(1, dtype=start.dtype), start]))

    def shared(self) -> tuple[Ngrams, Tensor]:
        """Only columns that more than one row has, renumbered, and their old numbers."""
        rows = torch.repeat_interleave(torch.arange(len(self.start) - 1), self.start.diff())
        pairs = torch.unique(self.index * (len(self.start) - 1) + rows) // max(1, len(self.start) - 1)
        columns, count = torch.unique_consecutive(pairs, return_counts=True)
        kept = columns[count > 1]
        keep = torch.isin(self.index, kept)
        per_row = torch.zeros(len(self.start), dtype=torch.long)
        per_row[1:] = torch.cumsum(torch.bincount(rows[keep], minlength=len(self.start) - 1), 0)
        return Ngrams(torch.searchsorted(kept, self.index[keep]), self.weight[keep], per_row), kept


@dataclass(frozen=True)
class Design:
    """Regressors of N rows: sparse n-grams (C columns) beside dense ones (N, B); see the module docstring."""

    ngrams: Ngrams
    columns: int
    dense: Tensor

    def fit(
        self, target_NS: Tensor, weight_NS: Tensor, penalty_S: Tensor, start: Tensor | None = None, offset_NS: Tensor | None = None
    ) -> Tensor:
        """θ of the penalised logistic regressions, one per head: (C + B + 1, S), the last row being the bias; float32 L-BFGS.

        Args:
            target_NS, weight_NS: targets in [0, 1] and row weights ≥ 0.
            start: θ to start from.
            offset_NS: fixed part of the logits, a log-ratio; default 0.
        """
        back, dense_t = self.ngrams.transposed(self.columns), self.dense.T.contiguous()
        prior_S = prior_log_odds(target_NS, weight_NS)
        theta = torch.zeros(self.columns + self.dense.shape[1] + 1, target_NS.shape[1]) if start is None else start.clone()
        if start is None:
            theta[-1] = prior_S
        optimizer = torch.optim.LBFGS(
            [theta], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe", tolerance_grad=1e-3, tolerance_change=1e-6
        )

        def closure() -> Tensor:
            logits = self.logits(theta) if offset_NS is None else self.logits(theta) + offset_NS
            residual = weight_NS * (torch.sigmoid(logits) - target_NS)
            weights, bias = theta[:-1], theta[-1] - prior_S
            theta.grad = torch.cat([back.times(residual), dense_t @ residual, residual.sum(dim=0, keepdim=True)])
            theta.grad[:-1] += penalty_S * weights
            theta.grad[-1] += BIAS_PENALTY * bias
            loss = (weight_NS * (F.softplus(logits) - target_NS * logits)).sum()
            return loss + 0.5 * ((penalty_S * weights.square()).sum() + BIAS_PENALTY * bias.square().sum())

        with torch.no_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        return theta

    def logits(self, theta: Tensor) -> Tensor:
        return self.ngrams.times(theta[: self.columns]) + self.dense @ theta[self.columns : -1] + theta[-1]


class WideModel(nn.Module):
    """The fitted log-linear model, rows → logits (N, S); all constants are buffers, so they are saved with the heads.

    Args:
        heads: S.
        basis: constants of the surface regressors; those of an empty one are replaced by ``load_state_dict``.
    """

    ngram_weight: Tensor
    surface_weight: Tensor
    bias: Tensor

    def __init__(self, heads: int, basis: SurfaceBasis):
        super().__init__()
        self.register_buffer("ngram_weight", torch.zeros(BUCKETS, heads))
        self.register_buffer("surface_weight", torch.zeros(basis.width, heads))
        self.register_buffer("bias", torch.zeros(heads))
        for name, value in vars(basis).items():
            self.register_buffer(name, torch.from_numpy(value))

    def forward(self, texts: Ragged, statistics_NF: Floats) -> Tensor:
        """Logits of responses given as token ids and surface statistics; a row's logits do not depend on the others."""
        basis = SurfaceBasis(*(getattr(self, name).cpu().numpy() for name in SurfaceBasis.__dataclass_fields__))
        dense = torch.from_numpy(basis(statistics_NF)).float()
        weight = self.surface_weight.cpu()
        surface = torch.stack([(dense * weight[:, i]).sum(dim=1) for i in range(weight.shape[1])], dim=1)
        return Ngrams.of(texts).times(self.ngram_weight.cpu()) + surface + self.bias.cpu()


def fit_wide(
    texts: Ragged,
    statistics_NF: Floats,
    target_NS: NDArray[np.float32],
    weight_NS: NDArray[np.float32],
    inner_N: NDArray[np.integer],
    offset_NS: Floats | None = None,
) -> tuple[WideModel, NDArray[np.float64], list[float]]:
    """Fit the model, choosing each head's λ by inner cross-validation.

    Args:
        texts: token ids of responses.
        target_NS, weight_NS: as in :meth:`Design.fit`.
        inner_N: inner fold of each row, 0 … INNER_FOLDS − 1, the same for all rows of a prompt.
        offset_NS: as in :meth:`Design.fit`; the returned logits are without it.

    Returns:
        the model, its cross-validated logits (N, S) of the same rows at the chosen λ, and λ by head.
    """
    ngrams, buckets = Ngrams.of(texts).shared()
    basis = SurfaceBasis.fit(statistics_NF)
    design = Design(ngrams, len(buckets), torch.from_numpy(basis(statistics_NF)).float())
    target, weight = torch.from_numpy(target_NS), torch.from_numpy(weight_NS)
    offset = None if offset_NS is None else torch.from_numpy(offset_NS).float()
    theta, held_NS, penalties = penalty_path(design, target, weight, inner_N, offset)
    model = WideModel(target.shape[1], basis)
    model.ngram_weight[buckets] = theta[: len(buckets)]
    model.surface_weight.copy_(theta[len(buckets) : -1])
    model.bias.copy_(theta[-1])
    return model, held_NS.double().numpy(), penalties


def penalty_path(
    design: Design, target: Tensor, weight: Tensor, inner_N: NDArray[np.integer], offset: Tensor | None = None
) -> tuple[Tensor, Tensor, list[float]]:
    """Choose each head's penalty by inner cross-validation over ``inner_N`` (see :func:`fit_wide`), and fit with it.

    Returns:
        θ of :meth:`Design.fit`, the cross-validated logits (N, S) at the chosen penalties *without* the offset, and the penalties.
    """
    heads = target.shape[1]
    folds = [torch.from_numpy(inner_N == fold) for fold in range(INNER_FOLDS)]
    thetas: list[Tensor | None] = [None] * INNER_FOLDS
    best_S, since = torch.full((heads,), torch.inf), 0
    held, losses = [], []  # by penalty: logits and weighted log-losses of rows, (N, S) each
    for penalty in PENALTIES:  # from strong to weak, each fit starting at the last
        held_NS = torch.zeros(len(target), heads)
        for fold, out in enumerate(folds):
            thetas[fold] = theta = design.fit(target, weight * ~out[:, None], torch.full((heads,), penalty), thetas[fold], offset)
            held_NS[out] = design.logits(theta)[out]
        held.append(held_NS)
        logits = held_NS if offset is None else held_NS + offset
        losses.append(weight * (F.softplus(logits) - target * logits))
        better = losses[-1].sum(dim=0) < best_S
        best_S, since = torch.minimum(losses[-1].sum(dim=0), best_S), 0 if better.any() else since + 1
        if since == PATIENCE:
            break
    chosen = [_strongest_as_good(torch.stack([loss[:, i] for loss in losses])) for i in range(heads)]
    penalty_S = torch.tensor([PENALTIES[k] for k in chosen])
    held_NS = torch.stack([held[k][:, i] for i, k in enumerate(chosen)], dim=1)
    return design.fit(target, weight, penalty_S, offset_NS=offset), held_NS, penalty_S.tolist()


def prior_log_odds(target_NS: Tensor, weight_NS: Tensor) -> Tensor:
    """log(golden/other) of the weighted rows, half a row added to either, (S,)."""
    total, golden = weight_NS.sum(dim=0), (weight_NS * target_NS).sum(dim=0)
    return torch.log((golden + 0.5) / (total - golden + 0.5))


def _strongest_as_good(losses_PN: Tensor) -> int:
    """Index of the first penalty whose total loss exceeds the lowest by at most one standard error of the difference."""
    excess_PN = losses_PN - losses_PN[losses_PN.sum(dim=1).argmin()]
    rows = losses_PN.shape[1]
    total_P, error_P = excess_PN.sum(dim=1), excess_PN.std(dim=1, correction=min(1, rows - 1)) * rows**0.5
    return int((total_P <= error_P).nonzero()[0])

"""Proxy of alignment: a linear Bradley-Terry head on frozen features, fitted to the optimum, and its cross-fitted golden loss.

A preference of y over y' is one row, the difference of the features of the two responses; P(y preferred) = σ(θ·difference). There is no
bias term: exchanging the responses changes the sign of the margin. The head minimises

    Σ_p weight_p·[softplus(m_p) − label_p·m_p] + ridge/2·‖θ‖²,        m_p = θ·difference_p,

which is convex, so its value depends on the data and the weights alone, not on steps, seeds or learning rates. The *golden loss* of a
choice of weights is the mean −log σ(m) over golden pairs, each scored by the head of its fold, which saw no pair of the fold's
prompts. Folds are a hash of the prompt: a synthetic pair of a held-out prompt is held out too.

Fit: L-BFGS in float64 whose first metric is a full Hessian: its first step is Newton's. :class:`CrossFit` sums Hessians once per group and
fold, at one reference head, and recombines them for other weights, so a further fit costs a few gradients. The metric decides how
fast the optimum is reached, never where it is.

Left out: biases per source (a preference has none), and learned features: they are frozen so that thousands of fits cost minutes.

Shape legend: P pairs, D features, K folds, G golden prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dora_core.evaluation.metrics import cluster_means, sigmoid

Floats = NDArray[np.float64]

GOLDEN = 0
"""Group of golden pairs."""
RIDGES = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)
"""Candidates of :func:`choose_ridge`, from strong to weak, for differences of mean square 1 per feature."""
STEPS, MEMORY, SHORTEST = 300, 20, 1e-8
TOLERANCE = 1e-10  # left of the objective (squared quasi-Newton decrement), nats per unit of weight: margins are off by about 1e-4


@dataclass(frozen=True)
class ProxyPairs:
    """Strict preferences as rows of a regression.

    Attributes:
        difference_PD: float64, features of the preferred response minus those of the other.
        group_P: :data:`GOLDEN`, or the number ≥ 1 of the source that the label comes from.
        prompt_P: hash of the prompt, any integers.
        fold_P: fold in [0, K), the same for all pairs of a prompt.
        weight_P: ≥ 0; 1/(pairs of the record) lets every record count once.
    """

    difference_PD: Floats
    group_P: NDArray[np.integer]
    prompt_P: NDArray[np.integer]
    fold_P: NDArray[np.integer]
    weight_P: Floats

    def __post_init__(self) -> None:
        lengths = {len(column) for column in vars(self).values()}
        if len(lengths) != 1:
            raise ValueError(f"one row per pair in every column, got lengths {sorted(lengths)}")
        if not np.isfinite(self.difference_PD).all():
            raise ValueError(f"{int((~np.isfinite(self.difference_PD)).any(axis=1).sum())} pairs have features that are not finite")

    def __len__(self) -> int:
        return len(self.group_P)

    @cached_property
    def folds(self) -> int:
        return int(self.fold_P.max(initial=0)) + 1

    @cached_property
    def golden_P(self) -> NDArray[np.bool_]:
        golden_P: NDArray[np.bool_] = self.group_P == GOLDEN
        return golden_P


@dataclass(frozen=True)
class Head:
    """A fitted head θ, shape (D,)."""

    theta_D: Floats

    def margins(self, difference_PD: Floats) -> Floats:
        """θ·difference in nats of log-odds, shape (P,); positive where the head prefers the first response."""
        margin_P: Floats = difference_PD @ self.theta_D
        return margin_P


def preference_loss(margin_P: Floats, label_P: Floats | float = 1.0) -> Floats:
    """Cross-entropy −label·log σ(m) − (1 − label)·log σ(−m) in nats, shape (P,)."""
    loss_P: Floats = np.logaddexp(0.0, margin_P) - label_P * margin_P
    return loss_P


def fit(
    difference_PD: Floats,
    weight_P: Floats,
    label_P: Floats | float = 1.0,
    *,
    ridge: float,
    start: Head | None = None,
    curvature_DD: Floats | None = None,
) -> Head:
    """Fit the head of the module docstring to its optimum.

    Args:
        difference_PD: see :class:`ProxyPairs`. Rows of weight 0 cost nothing.
        weight_P: ≥ 0, any scale; ``ridge`` is in the same unit.
        label_P: probability in [0, 1] that the first response is preferred.
        ridge: > 0.
        start: head to start from; None starts at 0.
        curvature_DD: approximate Hessian, ``ridge`` included; None: the exact one at ``start``. It changes the time, not the optimum.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be > 0, got {ridge}")
    used = weight_P > 0
    if not used.all():
        difference_PD, weight_P = difference_PD[used], weight_P[used]
        label_P = label_P[used] if isinstance(label_P, np.ndarray) else label_P
    theta = np.zeros(difference_PD.shape[1]) if start is None else start.theta_D.copy()
    margin_P = difference_PD @ theta
    scale = max(float(weight_P.sum()), 1.0)

    def value(margin_P: Floats, theta: Floats) -> float:
        return float(weight_P @ preference_loss(margin_P, label_P) + 0.5 * ridge * theta @ theta)

    if curvature_DD is None:
        p_P = sigmoid(margin_P)
        curvature_DD = hessian(difference_PD, weight_P * p_P * (1 - p_P), ridge)
    metric = _Metric(np.linalg.inv(curvature_DD))
    now, gradient = value(margin_P, theta), difference_PD.T @ (weight_P * (sigmoid(margin_P) - label_P)) + ridge * theta
    for _ in range(STEPS):
        step = metric.times(gradient)
        decrement = float(gradient @ step)
        if decrement <= TOLERANCE * scale:
            return Head(theta)
        change_P, length = difference_PD @ step, 1.0
        while (tried := value(margin_P - length * change_P, theta - length * step)) > now - 1e-4 * length * decrement:
            length /= 2
            if length < SHORTEST:
                return Head(theta)  # no descent is left at the precision of float64
        theta, margin_P, now = theta - length * step, margin_P - length * change_P, tried
        before, gradient = gradient, difference_PD.T @ (weight_P * (sigmoid(margin_P) - label_P)) + ridge * theta
        metric.update(-length * step, gradient - before)
    raise ArithmeticError(f"the proxy did not converge in {STEPS} steps: {decrement / scale:.1e} nats per unit of weight are left")


class _Metric:
    """Inverse Hessian of L-BFGS (Nocedal & Wright 2006, algorithm 7.4) that starts from a full matrix instead of a multiple of 1."""

    def __init__(self, inverse_DD: NDArray[Any]):
        self._inverse_DD = inverse_DD
        self._moves: list[tuple[Floats, Floats, float]] = []

    def update(self, step: Floats, change: Floats) -> None:
        """Learn from a step and the change of the gradient along it."""
        curvature = float(step @ change)
        if curvature > 0:
            self._moves = [*self._moves[1 - MEMORY :], (step, change, 1.0 / curvature)]

    def times(self, gradient: Floats) -> Floats:
        out, along = gradient.copy(), list[float]()
        for step, change, rho in reversed(self._moves):
            along.append(rho * float(step @ out))
            out -= along[-1] * change
        out = self._inverse_DD @ out
        for (step, change, rho), a in zip(self._moves, reversed(along), strict=True):
            out += (a - rho * float(change @ out)) * step
        return out


def hessian(difference_PD: Floats, curvature_P: Floats, ridge: float) -> Floats:
    """Σ_p curvature_p·difference_p·difference_pᵀ + ridge·1, shape (D, D)."""
    hessian_DD: Floats = (difference_PD * curvature_P[:, None]).T @ difference_PD
    hessian_DD[np.diag_indices_from(hessian_DD)] += ridge
    return hessian_DD


class CrossFit:
    """Heads of all folds under changing weights, and their golden loss.

    Args:
        pairs: rows of every group that will ever have a weight.
        ridge: of every fit.
        label_P: probability in [0, 1] that the first response is preferred, (P,), or (K, P) where it differs by the fold that is held
            out; None: 1.
    """

    def __init__(self, pairs: ProxyPairs, ridge: float, label_P: Floats | None = None):
        self.pairs, self.ridge, self.label_P = pairs, ridge, label_P
        self._heads: list[Head | None] = [None] * pairs.folds

    def fit(self, weight_P: Floats) -> list[Head]:
        """Head of each fold, fitted to the pairs of all other folds.

        Args:
            weight_P: ≥ 0, (P,), or (K, P) where weights differ by the fold that is held out; multiplied by ``pairs.weight_P``.
        """
        pairs = self.pairs
        for fold in range(pairs.folds):
            weight = (weight_P[fold] if weight_P.ndim == 2 else weight_P) * pairs.weight_P * (pairs.fold_P != fold)
            label: Floats | float = 1.0
            if self.label_P is not None:
                label = self.label_P[fold] if self.label_P.ndim == 2 else self.label_P
            self._heads[fold] = fit(
                pairs.difference_PD,
                weight,
                label,
                ridge=self.ridge,
                start=self._heads[fold],
                curvature_DD=self._curvature(fold, weight_P),
            )
        return [head for head in self._heads if head is not None]

    def out_of_fold(self, heads: Sequence[Head]) -> Floats:
        """Margin of every pair under the head that saw no pair of its prompt, shape (P,)."""
        margin_P = np.empty(len(self.pairs))
        for fold, head in enumerate(heads):
            own = self.pairs.fold_P == fold
            margin_P[own] = head.margins(self.pairs.difference_PD[own])
        return margin_P

    def golden_losses(self, heads: Sequence[Head]) -> Floats:
        """Out-of-fold loss of every golden prompt, the mean over its pairs, in the order of the prompts' hashes: (G,)."""
        golden = self.pairs.golden_P
        return cluster_means(preference_loss(self.out_of_fold(heads)[golden]), self.pairs.prompt_P[golden])

    @cached_property
    def _curvatures(self) -> Floats:
        """Hessians at the head of weight 1 for golden pairs alone, by group and fold: (groups, K, D, D)."""
        pairs = self.pairs
        golden = fit(pairs.difference_PD, pairs.weight_P * pairs.golden_P, ridge=self.ridge)
        p_P = sigmoid(golden.margins(pairs.difference_PD))
        curvature_P = pairs.weight_P * p_P * (1 - p_P)
        groups, features = int(pairs.group_P.max()) + 1, pairs.difference_PD.shape[1]
        sums = np.zeros((groups, pairs.folds, features, features))
        for group in range(groups):
            for fold in range(pairs.folds):
                own = (pairs.group_P == group) & (pairs.fold_P == fold)
                sums[group, fold] = hessian(pairs.difference_PD[own], curvature_P[own], 0.0)
        return sums

    def _curvature(self, fold: int, weight_P: Floats) -> Floats:
        """Approximate Hessian of one fold's fit: every group's sum at the mean weight of its pairs."""
        weight = weight_P[fold] if weight_P.ndim == 2 else weight_P
        groups = len(self._curvatures)
        counts = np.maximum(np.bincount(self.pairs.group_P, minlength=groups), 1)
        mean = np.bincount(self.pairs.group_P, weight, minlength=groups) / counts
        others = self._curvatures.sum(axis=1) - self._curvatures[:, fold]
        hessian_DD: Floats = np.einsum("g,gij->ij", mean, others)
        hessian_DD[np.diag_indices_from(hessian_DD)] += self.ridge
        return hessian_DD


def cross_fitted_golden_loss(pairs: ProxyPairs, weight_P: Floats, *, ridge: float, label_P: Floats | None = None) -> Floats:
    """Out-of-fold loss in nats of every golden prompt, (G,), of heads fitted to all pairs with these weights: one evaluation of
    :class:`CrossFit`, which is cheaper for several."""
    fitted = CrossFit(pairs, ridge, label_P)
    return fitted.golden_losses(fitted.fit(weight_P))


def choose_ridge(pairs: ProxyPairs, weight_P: Floats, ridges: Sequence[float] = RIDGES) -> float:
    """Choose the ridge of the lowest cross-fitted golden loss; candidates are tried from strong to weak until one is worse."""
    best, lowest = ridges[0], np.inf
    for ridge in ridges:
        loss = float(cross_fitted_golden_loss(pairs, weight_P, ridge=ridge).mean())
        if loss > lowest:
            break
        best, lowest = ridge, loss
    return best


def within_one_error(losses: Sequence[Floats]) -> int:
    """Position of the first candidate whose mean loss exceeds the lowest by at most one standard error of the paired difference (Breiman
    et al. 1984, section 3.4.3)."""
    best = min(range(len(losses)), key=lambda i: float(losses[i].mean()))
    for i, loss_G in enumerate(losses):
        excess_G = loss_G - losses[best]
        error = float(excess_G.std(ddof=1)) / len(excess_G) ** 0.5 if len(excess_G) > 1 else 0.0
        if excess_G.mean() <= error:
            return i
    return best

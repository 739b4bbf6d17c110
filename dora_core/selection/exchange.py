"""Exchange rate: the number of golden labels that one label of a source is worth, on this task.

κ_s ≥ 0 minimises the cross-fitted golden loss (``proxy.py``) of a head trained on golden pairs + Σ_s κ_s·(pairs of source s): 1 if a label
of the source teaches as much as one of people, 0 if it teaches nothing or harms. n_s labels of the source are then worth κ_s·n_s golden
ones. It needs no model of the source's bias or noise: what helps to predict people's labels counts.

Search: coordinate descent over the sources on :data:`GRID`, then midpoints around each optimum; the ridge is one more coordinate, since
few golden labels and many of all sources want different ones. The same for each *factor* that pairs of sources can carry in
addition (none, h, trust, h·trust; of mean 1 per source, so that κ stays a weight per label); the factor of the lowest loss is kept.

Interval: golden prompts are resampled, and each resample takes the κ_s that minimises its loss on the profile of κ_s, the others fixed.
It has the noise of the golden pairs that judge, not that of the pairs that train. With fewer golden prompts than ``few_prompts`` the
smallest κ within one standard error of the lowest loss is chosen (Breiman et al. 1984, section 3.4.3).

Left out: κ above 1 (labels better than people's), gradients through the fit (the grid costs minutes and cannot get stuck), and joint
intervals.

Shape legend: P pairs, K folds, G golden prompts, S sources, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dora_core.evaluation.metrics import Interval, draw_counts
from dora_core.selection.proxy import GOLDEN, RIDGES, CrossFit, Floats, ProxyPairs, within_one_error

GRID = (0.0, 0.03, 0.1, 0.3, 1.0)
SWEEPS = 4
FEW_PROMPTS = 100
NONE = "none"
"""Name of the factor that is 1 for every pair."""

Verdict = Literal["use", "weight", "drop", "cannot tell"]


@dataclass(frozen=True)
class ExchangeRate:
    """Worth of one source's labels.

    Attributes:
        rate: κ_s with its interval; ``n`` counts golden prompts.
        labels: n_s, the sum of ``weight_P`` (records, where a record's pairs weigh 1 together).
        worth: κ_s·n_s golden labels.
        verdict: see :func:`verdict`.
        profile: mean golden loss in nats by κ_s, the other sources at their own κ; ascending.
    """

    rate: Interval
    labels: float
    worth: float
    verdict: Verdict
    profile: dict[float, float]


@dataclass(frozen=True)
class Exchange:
    """Result of a search.

    Attributes:
        sources: by group of ``ProxyPairs.group_P``, golden left out.
        factor: name of the factor kept.
        ridge: of the fits.
        losses: mean golden loss in nats of each factor at its best κ.
        golden_alone: mean golden loss without any source, at its own best ridge.
        all_alike: mean golden loss with κ = 1 for every source and no factor, at its own best ridge.
        weight_P: of every pair in the best fit, (P,) or (K, P): 1 for golden, κ·factor for sources; multiplies ``weight_P`` of the pairs.
    """

    sources: dict[int, ExchangeRate]
    factor: str
    ridge: float
    losses: dict[str, float]
    golden_alone: float
    all_alike: float
    weight_P: Floats


def verdict(rate: Interval) -> Verdict:
    """Read an exchange rate: ``cannot tell`` if its interval contains 0 and 1, ``drop`` at 0, ``use`` if the interval reaches 1 or more
    from above 0 and the estimate is above ½, else ``weight``."""
    if rate.low <= 0.0 and rate.high >= 1.0:
        return "cannot tell"
    if rate.value <= 0.0:
        return "drop"
    return "use" if rate.value > 0.5 and rate.high >= 1.0 else "weight"


def exchange_rates(
    pairs: ProxyPairs,
    factors: Mapping[str, Floats] | None = None,
    *,
    ridges: tuple[float, ...] = RIDGES,
    few_prompts: int = FEW_PROMPTS,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Callable[[int], None] = lambda fits: None,
) -> Exchange:
    """Search κ of every source; see the module docstring. Needs golden pairs in at least two folds.

    Args:
        factors: by name, ≥ 0, (P,) or (K, P) where they depend on the fold that is held out (trust does); values of golden pairs are
            ignored. ``none`` is always tried.
        few_prompts: number of golden prompts below which the smaller κ within one standard error is chosen.
        progress: called with the number of evaluations so far.

    Raises:
        ValueError: fewer than two folds have golden pairs.
    """
    if len(np.unique(pairs.fold_P[pairs.golden_P])) < 2:
        raise ValueError("golden pairs of at least two folds are needed: a fold is scored by heads trained on the others")
    search = _Search(pairs, few_prompts, progress)
    ones = np.ones(len(pairs))
    tried = {NONE: ones} | {name: _mean_one(pairs, values) for name, values in (factors or {}).items()}
    alone, alike = (search.best_ridge(ridges, NONE, ones, np.full(search.groups, kappa)) for kappa in (0.0, 1.0))
    start = min((alone, alike), key=search.mean)
    best: dict[str, _Point] = {}
    for name, factor_P in tried.items():
        best[name] = search.descend(ridges, factor_P, start.of(name) if name == NONE else best[NONE].of(name))
    kept = min(best, key=lambda name: search.mean(best[name]))
    point, factor_P = best[kept], tried[kept]
    prompts = len(search.losses(point, factor_P))
    counts_BG = draw_counts(prompts, samples, seed)
    sources = {}
    for group in search.sources:
        profile = search.profile(point, factor_P, group)
        resampled_BC = counts_BG @ np.stack([search.losses(p, factor_P) for p in profile.values()]).T
        drawn_B = np.array(list(profile))[resampled_BC.argmin(axis=1)]
        low, high = np.quantile(drawn_B, [(1 - confidence) / 2, (1 + confidence) / 2], method="closest_observation")
        value = point.kappa[group]
        rate = Interval(value=value, low=min(value, float(low)), high=max(value, float(high)), n=prompts)
        labels = float(pairs.weight_P[pairs.group_P == group].sum())
        sources[group] = ExchangeRate(rate, labels, value * labels, verdict(rate), {k: search.mean(p) for k, p in profile.items()})
    return Exchange(
        sources=sources,
        factor=kept,
        ridge=point.ridge,
        losses={name: search.mean(p) for name, p in best.items()},
        golden_alone=search.mean(alone),
        all_alike=search.mean(alike),
        weight_P=search.weights(point, factor_P),
    )


@dataclass(frozen=True)
class _Point:
    """One candidate: a factor by name, the ridge, and κ by group (1 for golden)."""

    factor: str
    ridge: float
    kappa: tuple[float, ...]

    def of(self, factor: str) -> _Point:
        return _Point(factor, self.ridge, self.kappa)

    def at(self, group: int, kappa: float) -> _Point:
        return _Point(self.factor, self.ridge, (*self.kappa[:group], kappa, *self.kappa[group + 1 :]))

    def with_ridge(self, ridge: float) -> _Point:
        return _Point(self.factor, ridge, self.kappa)


class _Search:
    """Golden losses of candidates, each computed once."""

    def __init__(self, pairs: ProxyPairs, few_prompts: int, progress: Callable[[int], None]):
        self.pairs, self._few, self._progress = pairs, few_prompts, progress
        self.groups = int(pairs.group_P.max()) + 1
        self.sources = [int(group) for group in np.unique(pairs.group_P) if group != GOLDEN]
        self._fits: dict[float, CrossFit] = {}
        self._losses: dict[_Point, Floats] = {}

    def weights(self, point: _Point, factor_P: Floats) -> Floats:
        weight_P: Floats = np.array(point.kappa)[self.pairs.group_P] * np.where(self.pairs.golden_P, 1.0, factor_P)
        return weight_P

    def losses(self, point: _Point, factor_P: Floats) -> Floats:
        """Loss of every golden prompt, (G,)."""
        if point not in self._losses:
            fitted = self._fits.setdefault(point.ridge, CrossFit(self.pairs, point.ridge))
            self._losses[point] = fitted.golden_losses(fitted.fit(self.weights(point, factor_P)))
            self._progress(len(self._losses))
        return self._losses[point]

    def mean(self, point: _Point) -> float:
        return float(self._losses[point].mean())

    def best_ridge(self, ridges: tuple[float, ...], factor: str, factor_P: Floats, kappa: Any) -> _Point:
        return self._ridge(ridges, factor_P, _Point(factor, ridges[0], (1.0, *(float(k) for k in kappa[1:]))))

    def _ridge(self, ridges: tuple[float, ...], factor_P: Floats, point: _Point) -> _Point:
        """The point with the ridge of the lowest loss; candidates are tried from strong to weak until one is worse."""
        best = point.with_ridge(ridges[0])
        for ridge in ridges:
            tried = point.with_ridge(ridge)
            if self.losses(tried, factor_P).mean() > self.losses(best, factor_P).mean():
                break
            best = tried
        return best

    def _choose(self, points: Mapping[float, _Point], factor_P: Floats) -> float:
        losses = [self.losses(points[kappa], factor_P) for kappa in points]
        few = len(losses[0]) < self._few
        at = within_one_error(losses) if few else min(range(len(losses)), key=lambda i: float(losses[i].mean()))
        return list(points)[at]

    def descend(self, ridges: tuple[float, ...], factor_P: Floats, point: _Point) -> _Point:
        """Coordinate descent from ``point`` on the grid, the ridge after every sweep; then once over midpoints."""
        for _ in range(SWEEPS):
            before = point
            for group in self.sources:
                point = point.at(group, self._choose({kappa: point.at(group, kappa) for kappa in GRID}, factor_P))
            point = self._ridge(ridges, factor_P, point)
            if point == before:
                break
        for group in self.sources:
            near = sorted({point.kappa[group], *_midpoints(point.kappa[group])})
            point = point.at(group, self._choose({kappa: point.at(group, kappa) for kappa in near}, factor_P))
        return point

    def profile(self, point: _Point, factor_P: Floats, group: int) -> dict[float, _Point]:
        """Points along κ of one source: the grid, its own κ and the midpoints around it; all are evaluated."""
        at = sorted({*GRID, point.kappa[group], *_midpoints(point.kappa[group])})
        points = {kappa: point.at(group, kappa) for kappa in at}
        for candidate in points.values():
            self.losses(candidate, factor_P)
        return points


def _midpoints(kappa: float) -> list[float]:
    """Geometric midpoints between a positive value of the grid and its positive neighbours."""
    if kappa not in GRID or kappa == 0:
        return []
    at = GRID.index(kappa)
    return [round((kappa * GRID[i]) ** 0.5, 4) for i in (at - 1, at + 1) if 0 < i < len(GRID)]


def _mean_one(pairs: ProxyPairs, factor: Floats) -> Floats:
    """A factor scaled to weighted mean 1 within every source (and held-out fold)."""
    rows = np.atleast_2d(factor)
    groups = int(pairs.group_P.max()) + 1
    weight_G = np.bincount(pairs.group_P, pairs.weight_P, minlength=groups)
    scaled = []
    for row_P in rows:
        mean_G = np.bincount(pairs.group_P, pairs.weight_P * row_P, minlength=groups) / np.maximum(weight_G, 1e-300)
        scaled.append(row_P / np.where(mean_G > 0, mean_G, 1.0)[pairs.group_P])
    out: Floats = np.stack(scaled) if factor.ndim == 2 else scaled[0]
    return out

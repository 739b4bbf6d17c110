"""The race: which records, weights and robust objective to align with, by cross-fitted loss on golden preferences.

No rule wins everywhere: golden records alone are best where people's labels suffice, all records where the judges agree with people,
density ratios and label trust in between (``dora_core/README.md``, worlds). So every entrant is fitted on the proxy
(``dora_core/selection/proxy.py``) to all folds but one and scored by its loss on the golden prompts of that fold.

Two kinds of entrant:

* A *weighting* gives synthetic records a weight κ, alone or times their factor h, with their labels as they are or softened by trust.
  κ = 0 is "golden only", κ = 1 is ``erm``, κ = 1 with h is ``reweight``.
* A *robust objective* (``dora``, ``dora_tilted``) at an effective-sample-size target, as with ``lambda: auto`` in training: λ itself has
  the unit of the loss and does not carry over from proxy to policy. λ is what meets the target on the losses of the optimum at λ = ∞;
  following the target to its own optimum would flatten the losses for ever smaller λ, down to θ = 0.

The choice averages the weightings instead of taking the first: record weights under pseudo-BMA+ (Yao, Vehtari, Simpson & Gelman 2018,
section 3.4), w = Σ_e p_e·w_e with p_e ∝ prior_e·exp(−total golden loss), the mean over Bayesian bootstraps of the prompts. With few golden
prompts the losses of neighbouring κ do not differ by more than their noise, and the first place is a draw; with many, the average is the
winner.
A robust objective is chosen only where it is better than the best weighting by more than one standard error of the paired
difference.

Left out: losses other than DPO's logistic one; entrants whose policies differ only in steps or learning rate.

Shape legend: P pairs, K folds, G golden prompts, E entrants, B bootstraps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dora_core.evaluation.metrics import cluster_means
from dora_core.selection.proxy import CrossFit, Head, ProxyPairs, choose_ridge, preference_loss

Floats = NDArray[np.float64]

KAPPAS = (0.03, 0.1, 0.3, 1.0)
ESS_TARGETS = (0.9, 0.7, 0.5)
BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Entrant:
    """A way to align.

    Attributes:
        kappa: weight of a synthetic record; golden records have 1.
        uses_factors: synthetic weights times h, in units of the mean h of golden records.
        uses_trust: labels softened by trust.
        objective: ``reweight`` for a weighting, else the robust objective, which has κ = 1 and its own use of h.
        ess_target: of a robust objective's λ; 1 for a weighting.
    """

    kappa: float = 1.0
    uses_factors: bool = False
    uses_trust: bool = False
    objective: str = "reweight"
    ess_target: float = 1.0

    @property
    def is_weighting(self) -> bool:
        return self.objective == "reweight"

    @property
    def name(self) -> str:
        """Name for tables: ``golden_only``, ``erm``, ``reweight``, ``κ 0.1 · h``, ``dora @ 0.7``, each with ``+ trust``."""
        if not self.is_weighting:
            base = f"{self.objective} @ {self.ess_target:g}"
        elif self.kappa == 0:
            return "golden_only"
        elif self.kappa == 1:
            base = "reweight" if self.uses_factors else "erm"
        else:
            base = f"κ {self.kappa:g}" + (" · h" if self.uses_factors else "")
        return base + (" + trust" if self.uses_trust else "")


BASELINES = (Entrant(kappa=0.0), Entrant())
"""Golden only and erm, which every race compares."""
FINALISTS = ("choice", "other", "golden_only", "erm")
"""Names of :meth:`Race.finalists`, in the order in which fewer of them are taken."""
BASELINE_PRIOR = 1 / 3
"""Prior probability of each baseline; the other weightings share the rest. They are many and alike, and would else outvote the baselines
where the golden preferences tell nothing."""


def entrants(*, factors: bool, trust: bool, objectives: Sequence[str] = ("dora", "dora_tilted")) -> list[Entrant]:
    """List the entrants for which the data exists; golden only first, then erm.

    Args:
        factors: whether records have factors h.
        trust: whether synthetic labels have probabilities.
    """
    h, soft = (False, True)[: 1 + factors], (False, True)[: 1 + trust]
    weightings = [Entrant(k, uses_factors=x, uses_trust=t) for k in reversed(KAPPAS) for x in h for t in soft]
    robust = [Entrant(objective=o, ess_target=e, uses_factors=True, uses_trust=t) for o in objectives for e in ESS_TARGETS for t in soft]
    return [BASELINES[0], *weightings, *(robust if factors else [])]


@dataclass(frozen=True)
class RaceData:
    """What entrants differ in.

    Attributes:
        pairs: proxy pairs, golden and synthetic.
        factor_P: h of each pair's record; None without factors.
        label_P: probability of each pair's label (``label_trust.py``), 1 for golden ones, for the training that follows; None without
            trust.
        held_out_label_KP: the same for the scoring of each fold, estimated without the fold's golden prompts; None: ``label_P``.
    """

    pairs: ProxyPairs
    factor_P: Floats | None = None
    label_P: Floats | None = None
    held_out_label_KP: Floats | None = None

    @cached_property
    def golden_factor(self) -> float:
        """Mean h of golden pairs, the unit in which synthetic weights count h."""
        return 1.0 if self.factor_P is None else max(float(self.factor_P[self.pairs.golden_P].mean()), 1e-12)

    def weights(self, entrant: Entrant) -> Floats:
        """Weight of each pair in a weighting, (P,)."""
        return weights_of(entrant, self.pairs.golden_P, self.factor_P, self.golden_factor)

    def labels(self, entrant: Entrant) -> Floats:
        """Label probability of each pair in the training that follows, (P,)."""
        return self.label_P if entrant.uses_trust and self.label_P is not None else np.ones(len(self.pairs))

    def held_out_labels(self, entrant: Entrant) -> Floats:
        """The same for scoring, (K, P)."""
        if entrant.uses_trust and self.held_out_label_KP is not None:
            return self.held_out_label_KP
        return np.broadcast_to(self.labels(entrant), (self.pairs.folds, len(self.pairs)))


def weights_of(entrant: Entrant, golden_N: NDArray[np.bool_], factor_N: Floats | None, golden_factor: float) -> Floats:
    """Weights of N records in a weighting: 1 for golden ones, κ or κ·h/``golden_factor`` for the others."""
    assert factor_N is not None or not entrant.uses_factors
    synthetic = entrant.kappa * (factor_N / golden_factor if entrant.uses_factors and factor_N is not None else np.ones(len(golden_N)))
    return np.where(golden_N, 1.0, synthetic)


@dataclass(frozen=True)
class Choice:
    """What to align with.

    Attributes:
        shares: weightings whose record weights are averaged, with their probabilities, which sum to 1; or one robust objective.
        golden_factor: see :class:`RaceData`.
        decided: whether the golden losses of ``erm`` and ``golden_only`` differ by more than one standard error.
        reason: one sentence.
    """

    shares: dict[Entrant, float]
    golden_factor: float
    decided: bool
    reason: str

    @property
    def title(self) -> str:
        """The only entrant's name, or ``average of weightings``."""
        return next(iter(self.shares)).name if len(self.shares) == 1 else "average of weightings"

    @property
    def robust(self) -> Entrant | None:
        """The robust objective, where one was chosen: it trains with h as it is, and λ by its effective-sample-size target."""
        first = next(iter(self.shares))
        return None if first.is_weighting else first

    def recipe(self, golden_N: NDArray[np.bool_], factor_N: Floats | None, label_N: Floats | None) -> tuple[Floats, Floats]:
        """Weights and label probabilities of N records, each (N,).

        The average is one of losses: w·[q·ℓ(m) + (1 − q)·ℓ(−m)] = Σ_e p_e·w_e·[q_e·ℓ(m) + (1 − q_e)·ℓ(−m)] at every margin.
        """
        ones = np.ones(len(golden_N))
        if self.robust is not None:
            assert factor_N is not None
            return factor_N, label_N if self.robust.uses_trust and label_N is not None else ones
        for_N, against_N = np.zeros(len(golden_N)), np.zeros(len(golden_N))
        for entrant, share in self.shares.items():
            weight_N = share * weights_of(entrant, golden_N, factor_N, self.golden_factor)
            q_N = label_N if entrant.uses_trust and label_N is not None else ones
            for_N += weight_N * q_N
            against_N += weight_N * (1 - q_N)
        weight_N = for_N + against_N
        return weight_N, np.divide(for_N, weight_N, out=ones, where=weight_N > 0)


@dataclass
class Race:
    """Cross-fitted golden losses of entrants, and the choice they lead to.

    Args:
        ridge: of every fit (:func:`ridge_of`).
        seed: of the Bayesian bootstrap.
    """

    data: RaceData
    ridge: float
    seed: int = 0
    losses: dict[Entrant, Floats] = field(default_factory=dict)
    """Loss of every golden prompt, (G,), by entrant that has run."""
    heads: dict[Entrant, list[Head]] = field(default_factory=dict)
    """Head of every fold, likewise."""

    def run(self, entrant: Entrant) -> Floats:
        """Fit all folds of one entrant; returns (G,), and remembers it."""
        if entrant not in self.losses:
            pairs, golden_P = self.data.pairs, self.data.pairs.golden_P
            self.heads[entrant] = self._weighting(entrant) if entrant.is_weighting else self._robust(entrant)
            margin_P = self.margins(entrant, pairs.difference_PD[golden_P], pairs.fold_P[golden_P])
            self.losses[entrant] = cluster_means(preference_loss(margin_P), pairs.prompt_P[golden_P])
        return self.losses[entrant]

    def margins(self, entrant: Entrant, difference_ND: Floats, fold_N: NDArray[np.integer]) -> Floats:
        """Margins in nats (N,) of any pairs, each by the head that saw no pair of its fold."""
        margin_N = np.empty(len(fold_N))
        for fold, head in enumerate(self.heads[entrant]):
            own = fold_N == fold
            margin_N[own] = head.margins(difference_ND[own])
        return margin_N

    def _weighting(self, entrant: Entrant) -> list[Head]:
        fitted = self._fitters.setdefault(
            entrant.uses_trust, CrossFit(self.data.pairs, self.ridge, self.data.held_out_labels(entrant) if entrant.uses_trust else None)
        )
        return fitted.fit(self.data.weights(entrant))

    @cached_property
    def _fitters(self) -> dict[bool, CrossFit]:
        return {}

    def _robust(self, entrant: Entrant) -> list[Head]:
        pairs, label_KP = self.data.pairs, self.data.held_out_labels(entrant)
        assert self.data.factor_P is not None
        heads = []
        for fold in range(pairs.folds):
            seen = pairs.fold_P != fold
            columns = (pairs.difference_PD, pairs.weight_P, self.data.factor_P, label_KP[fold])
            difference_PD, weight_P, factor_P, label_P = (column[seen] for column in columns)
            objective, target = entrant.objective, entrant.ess_target
            heads.append(
                fit_objective(difference_PD, weight_P, factor_P, label_P, objective=objective, ess_target=target, ridge=self.ridge)
            )
        return heads

    # ------------------------------------------------------------------------------------------------------------- choice

    def posterior(self) -> dict[Entrant, float]:
        """Pseudo-BMA+ probability of every weighting that has run, the largest first; they sum to 1."""
        weightings = [e for e in self.losses if e.is_weighting]
        base = sum(e in BASELINES for e in weightings)
        others = max(len(weightings) - base, 1)
        prior_E = np.array([BASELINE_PRIOR if e in BASELINES else (1 - base * BASELINE_PRIOR) / others for e in weightings])
        loss_EG = np.stack([self.losses[e] for e in weightings])
        prompts = loss_EG.shape[1]
        draws_BG = np.random.default_rng([self.seed, 7]).dirichlet(np.ones(prompts), BOOTSTRAPS) * prompts
        total_BE = draws_BG @ loss_EG.T
        shares_BE = prior_E * np.exp(total_BE.min(axis=1, keepdims=True) - total_BE)
        shares_E = (shares_BE / shares_BE.sum(axis=1, keepdims=True)).mean(axis=0)
        found = zip(weightings, shares_E.tolist(), strict=True)
        return dict(sorted(found, key=lambda item: -item[1]))

    def excess(self, entrant: Entrant, other: Entrant) -> tuple[float, float]:
        """Mean golden loss of ``entrant`` above that of ``other``, nats, and the standard error of this paired difference."""
        difference_G = self.losses[entrant] - self.losses[other]
        error = float(difference_G.std(ddof=1)) / math.sqrt(len(difference_G)) if len(difference_G) > 1 else math.inf
        return float(difference_G.mean()), error

    def choose(self) -> Choice:
        """Choose by the rules of the module docstring; at least the :data:`BASELINES` must have run."""
        gap, error = self.excess(*BASELINES)
        decided = abs(gap) > error
        best = min((e for e in self.losses if e.is_weighting), key=lambda e: float(self.losses[e].mean()))
        robust = min((e for e in self.losses if not e.is_weighting), key=lambda e: float(self.losses[e].mean()), default=None)
        if robust is not None:
            gain, error = self.excess(best, robust)
            if gain > error:
                reason = f"{robust.name}: golden loss lower than that of the best weighting ({best.name}) by {gain:.4f} ± {error:.4f} nats"
                return Choice({robust: 1.0}, self.data.golden_factor, decided, reason)
        shares = self.posterior()
        choice = Choice(shares, self.data.golden_factor, decided, "")
        synthetic = ~self.data.pairs.golden_P
        weight_P, _ = choice.recipe(self.data.pairs.golden_P, self.data.factor_P, self.data.label_P)
        first, share = next(iter(shares.items()))
        named = (
            f"{first.name} ({share:.0%} of the evidence)" if share >= 0.5 else f"an average of weightings, {first.name} first ({share:.0%})"
        )
        kappa = float(weight_P[synthetic].mean()) if synthetic.any() else 0.0
        return replace(choice, reason=f"{named}; a synthetic record has weight {kappa:.2f} on average")

    def finalists(self, choice: Choice) -> dict[str, Choice]:
        """Return the proxy's choice and what short trainings compare with it, by name: the best of the other kind (a robust objective, or
        the average of weightings), and the baselines. The names do not depend on the data."""
        robust = [e for e in self.losses if not e.is_weighting]
        if choice.robust is not None:
            other = self.posterior()
        else:
            field = robust or [e for e in self.losses if e.is_weighting]
            other = {min(field, key=lambda e: float(self.losses[e].mean())): 1.0}
        single = {"other": other, "golden_only": {BASELINES[0]: 1.0}, "erm": {BASELINES[1]: 1.0}}
        return {"choice": choice} | {name: replace(choice, shares=shares) for name, shares in single.items()}


def ridge_of(pairs: ProxyPairs, kappa: float = 0.3) -> float:
    """Choose the ridge of all fits of a race: that of the lowest golden loss with synthetic pairs at weight ``kappa``."""
    return choose_ridge(pairs, np.where(pairs.golden_P, 1.0, kappa))


def fit_objective(
    difference_PD: Floats,
    weight_P: Floats,
    factor_P: Floats,
    label_P: Floats,
    *,
    objective: str,
    ess_target: float,
    ridge: float,
) -> Head:
    """Fit the head under a registered robust objective, over all pairs as one batch, at the λ of the module docstring.

    Minimises n·V(ℓ, h, λ) + ridge/2·‖θ‖², n = Σ weight, which equals :func:`proxy.fit` for ``erm``. ``weight_P`` scales h and
    n alike where it is 1/(pairs of a record).
    """
    import torch

    from dora_core.objectives.base import find_objective
    from dora_core.objectives.lambda_control import UNBOUNDED, lambda_for_ess

    rule = find_objective(objective)
    difference, weight, factor, label = (torch.from_numpy(np.ascontiguousarray(a)) for a in (difference_PD, weight_P, factor_P, label_P))
    scaled, total = factor * weight * len(weight) / weight.sum(), weight.sum()
    theta = torch.zeros(difference.shape[1], dtype=torch.float64, requires_grad=True)

    def losses() -> torch.Tensor:
        margin = difference @ theta
        return torch.nn.functional.softplus(margin) - label * margin

    def minimise(lam: float) -> None:
        optimizer = torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-7 * float(total), line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            value = total * rule(losses(), scaled, lam) + 0.5 * ridge * theta.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(closure)  # type: ignore[no-untyped-call]

    minimise(UNBOUNDED)
    if rule.uses_lambda and ess_target < 1 and (lam := lambda_for_ess(rule, losses().detach(), scaled, ess_target)) is not None:
        minimise(lam)
    return Head(theta.detach().numpy().copy())

"""The race: which records, weights and robust objective to align with, by cross-fitted loss on golden preferences.

No rule wins everywhere: golden records alone are best where people's labels suffice, all records where the judges agree with people,
density ratios and label trust in between (``dora_core/README.md``, worlds). So every entrant is fitted on the proxy
(``dora_core/selection/proxy.py``) to all folds but one and scored by its loss on the golden prompts of that fold.

Two kinds of entrant:

* A *weighting* gives synthetic records a weight κ, alone or times their factor h, with their labels as they are or softened by trust.
  κ = 0 is "golden only", κ = 1 is ``erm``, κ = 1 with h is ``reweight``.
* A *robust objective* (``dora``, ``dora_tilted``) at an effective-sample-size target, as with ``lambda: auto`` in training: λ itself has the
  unit of the loss and does not carry over from proxy to policy. λ is what meets the target on the losses of the optimum at λ = ∞;
  following the target to its own optimum would flatten the losses for ever smaller λ, down to θ = 0.

The choice averages the weightings instead of taking the first: record weights under pseudo-BMA+ (Yao, Vehtari, Simpson & Gelman 2018,
section 3.4), w = Σ_e p_e·w_e with p_e the mean over Bayesian bootstraps of the prompts of softmax(−total golden loss). With few golden prompts
the losses of neighbouring κ do not differ by more than their noise, and the first place is a draw; with many, the average is the winner.
A robust objective is chosen only where it is better than the best weighting by more than one standard error of the paired
difference.

Left out: losses other than DPO's logistic one; entrants whose policies differ only in steps or learning rate.

Shape legend: P pairs, K folds, G golden prompts, E entrants, B bootstraps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dora_core.evaluation.metrics import cluster_means
from dora_core.selection.proxy import CrossFit, Head, ProxyPairs, preference_loss

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


def entrants(*, factors: bool, trust: bool, objectives: Sequence[str] = ("dora", "dora_tilted")) -> list[Entrant]:
    """List the entrants for which the data exists; golden only first, then erm.

    Args:
        factors: whether records have factors h.
        trust: whether synthetic labels have probabilities.
    """
    h, soft = (False, True)[: 1 + factors], (False, True)[: 1 + trust]
    weightings = [Entrant(k, uses_factors=x, uses_trust=t) for k in reversed(KAPPAS) for x in h for t in soft]
    robust = [Entrant(objective=o, ess_target=e, uses_factors=True, uses_trust=t) for o in objectives for e in ESS_TARGETS for t in soft]
    return [Entrant(kappa=0.0), *weightings, *(robust if factors else [])]


@dataclass(frozen=True)
class RaceData:
    """What entrants differ in.

    Attributes:
        pairs: proxy pairs, golden and synthetic.
        factor_P: h of each pair's record; None without factors.
        label_P: P(a person prefers the first response) of synthetic pairs, 1 for golden ones; (P,), or (K, P) where it was estimated
            without the fold's golden prompts. None without trust.
    """

    pairs: ProxyPairs
    factor_P: Floats | None = None
    label_P: Floats | None = None

    @cached_property
    def relative_factor_P(self) -> Floats:
        """h in units of its mean over golden records."""
        assert self.factor_P is not None
        relative: Floats = self.factor_P / max(float(self.factor_P[self.pairs.golden_P].mean()), 1e-12)
        return relative

    def weights(self, entrant: Entrant) -> Floats:
        """Weight of each pair in a weighting, (P,)."""
        synthetic = entrant.kappa * (self.relative_factor_P if entrant.uses_factors else np.ones(len(self.pairs)))
        return np.where(self.pairs.golden_P, 1.0, synthetic)

    def labels(self, entrant: Entrant) -> Floats | None:
        return self.label_P if entrant.uses_trust else None


@dataclass(frozen=True)
class Choice:
    """What to align with.

    Attributes:
        objective, ess_target: of the training; ``reweight`` with weights of this choice, or a robust objective with factors h.
        weight_P: weight of each pair's record.
        label_P: probability of each pair's label.
        reason: one sentence.
        decided: :attr:`Race.is_decided`.
    """

    objective: str
    ess_target: float
    weight_P: Floats
    label_P: Floats
    reason: str
    decided: bool


@dataclass
class Race:
    """Cross-fitted golden losses of entrants, and the choice they lead to.

    Args:
        ridge: of every fit (``proxy.choose_ridge``).
        seed: of the Bayesian bootstrap.
    """

    data: RaceData
    ridge: float
    seed: int = 0
    losses: dict[Entrant, Floats] = field(default_factory=dict)
    """Loss of every golden prompt, (G,), by entrant that has run."""

    def run(self, entrant: Entrant) -> Floats:
        """Fit all folds of one entrant; returns (G,), and remembers it."""
        if entrant not in self.losses:
            self.losses[entrant] = self._weighting(entrant) if entrant.is_weighting else self._robust(entrant)
        return self.losses[entrant]

    def _weighting(self, entrant: Entrant) -> Floats:
        key = entrant.uses_trust
        if key not in self._fitters:
            self._fitters[key] = CrossFit(self.data.pairs, self.ridge, self.data.labels(entrant))
        fitted = self._fitters[key]
        return fitted.golden_losses(fitted.fit(self.data.weights(entrant)))

    @cached_property
    def _fitters(self) -> dict[bool, CrossFit]:
        return {}

    def _robust(self, entrant: Entrant) -> Floats:
        pairs, label_P = self.data.pairs, self.data.labels(entrant)
        assert self.data.factor_P is not None
        margin_P = np.zeros(len(pairs))
        for fold in range(pairs.folds):
            seen = pairs.fold_P != fold
            labels = np.ones(len(pairs)) if label_P is None else label_P[fold] if label_P.ndim == 2 else label_P
            head = fit_objective(
                pairs.difference_PD[seen], pairs.weight_P[seen], self.data.factor_P[seen], labels[seen],
                objective=entrant.objective, ess_target=entrant.ess_target, ridge=self.ridge,
            )  # fmt: skip
            margin_P[~seen] = head.margins(pairs.difference_PD[~seen])
        golden = pairs.golden_P
        return cluster_means(preference_loss(margin_P[golden]), pairs.prompt_P[golden])

    # ------------------------------------------------------------------------------------------------------------- choice

    def posterior(self) -> dict[Entrant, float]:
        """Pseudo-BMA+ probability of every weighting that has run; they sum to 1."""
        weightings = [e for e in self.losses if e.is_weighting]
        loss_EG = np.stack([self.losses[e] for e in weightings])
        prompts = loss_EG.shape[1]
        draws_BG = np.random.default_rng([self.seed, 7]).dirichlet(np.ones(prompts), BOOTSTRAPS) * prompts
        total_BE = draws_BG @ loss_EG.T
        shares_BE = np.exp(total_BE.min(axis=1, keepdims=True) - total_BE)
        shares_E = (shares_BE / shares_BE.sum(axis=1, keepdims=True)).mean(axis=0)
        return dict(zip(weightings, shares_E.tolist(), strict=True))

    def excess(self, entrant: Entrant, other: Entrant) -> tuple[float, float]:
        """Mean golden loss of ``entrant`` above that of ``other``, nats, and the standard error of this paired difference."""
        difference_G = self.losses[entrant] - self.losses[other]
        error = float(difference_G.std(ddof=1)) / math.sqrt(len(difference_G)) if len(difference_G) > 1 else math.inf
        return float(difference_G.mean()), error

    def choose(self) -> Choice:
        """Choose by the rules of the module docstring; at least golden only and erm must have run."""
        best = min((e for e in self.losses if e.is_weighting), key=lambda e: float(self.losses[e].mean()))
        robust = [e for e in self.losses if not e.is_weighting]
        if robust:
            first = min(robust, key=lambda e: float(self.losses[e].mean()))
            gain, error = self.excess(best, first)
            if gain > error:
                return self._robust_choice(first, best, gain, error)
        return self._averaged_choice()

    def _robust_choice(self, entrant: Entrant, best: Entrant, gain: float, error: float) -> Choice:
        label_P = self._labels(entrant)
        assert self.data.factor_P is not None
        reason = f"{entrant.name}: golden loss lower than that of the best weighting ({best.name}) by {gain:.4f} ± {error:.4f} nats"
        return Choice(entrant.objective, entrant.ess_target, self.data.factor_P, label_P, reason, self.is_decided)

    def _averaged_choice(self) -> Choice:
        pairs, shares = self.data.pairs, self.posterior()
        for_P, against_P = np.zeros(len(pairs)), np.zeros(len(pairs))
        for entrant, share in shares.items():
            weight_P, label_P = self.data.weights(entrant), self._labels(entrant)
            for_P += share * weight_P * label_P
            against_P += share * weight_P * (1 - label_P)
        weight_P = for_P + against_P
        label_P = np.divide(for_P, weight_P, out=np.ones_like(for_P), where=weight_P > 0)
        first, share = max(shares.items(), key=lambda item: item[1])
        synthetic = ~pairs.golden_P
        kappa = float(weight_P[synthetic].mean()) if synthetic.any() else 0.0
        named = (
            f"{first.name} ({share:.0%} of the evidence)" if share >= 0.5 else f"an average of weightings, {first.name} first ({share:.0%})"
        )
        return Choice("reweight", 1.0, weight_P, label_P, f"{named}; a synthetic record has weight {kappa:.2f} on average", self.is_decided)

    @property
    def is_decided(self) -> bool:
        """Whether the golden losses of ``erm`` and ``golden_only`` differ by more than one standard error."""
        gap, error = self.excess(Entrant(kappa=0.0), Entrant())
        return abs(gap) > error

    def _labels(self, entrant: Entrant) -> Floats:
        """Labels for a fit on all pairs: cross-fitted ones are each from the fold of the pair itself."""
        label_P = self.data.labels(entrant)
        if label_P is None:
            return np.ones(len(self.data.pairs))
        return label_P if label_P.ndim == 1 else label_P[self.data.pairs.fold_P, np.arange(len(self.data.pairs))]


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

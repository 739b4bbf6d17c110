"""Label trust: the probability that a source's label is the one people would give, per source and per label.

Model: a label of source s is a label of people, reversed with probability η_s. The *agreement* of the source is a_s = 1 − η_s: 1 for labels
as good as people's own, whose noise is no disagreement, and ½ for labels that tell nothing. A label's *probability* q is the posterior of
not being reversed; golden labels have q = 1. Three estimates:

- *overlap*: pairs that both people and the source have labelled. Their share of equal labels, with a beta posterior. People disagree
  with each other too, so this is a lower bound of 1 − η_s.
- *reward_model*: a head fitted on golden pairs alone (``proxy.py``), out of fold, with a temperature fitted on out-of-fold golden pairs,
  gives p = P(people prefer the stated winner). η_s maximises Σ log[(1 − η)p + η(1 − p)] (the forward correction of Patrini et al. 2017,
  arXiv 1609.03683), and q = (1 − η)p/((1 − η)p + η(1 − p)). The head's own error is in p: a head at chance gives p = ½ and no
  information about η, hence a wide interval, not a low agreement.
- *em*: the same posterior, with the head fitted on all labels, each weighted by its q: expectation maximisation as in LCPO (arXiv
  2509.24159), with one η ≤ ½ per source and margins out of fold.

What *em* cannot see: a bias that most labels share looks like the truth. It estimates consistency, and is for data without golden labels.
A *biased* judge is not a reversal: labels that follow length, where people prefer length a little, are each likelier than not, and η = 0
explains them. *reward_model* therefore asks how far a source's own preferences deviate from people's (``source_bias.py``), and where
reversals do not explain them takes the agreement from there, with an interval between its bounds.

Shape legend: P pairs, K folds, B bootstrap resamples, C clusters (prompts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dora_core.evaluation.metrics import Interval, draw_counts, percentiles, sigmoid
from dora_core.selection.proxy import GOLDEN, CrossFit, Floats, Head, ProxyPairs, hessian, preference_loss
from dora_core.selection.reversal import inside, label_probability, noise_of_agreement, noise_rate, noise_rates, temperature, temperatures
from dora_core.selection.source_bias import Deviation, deviation, own_preferences

Method = Literal["overlap", "em", "reward_model"]

EM_STEPS, EM_BURN_IN, EM_CHANGE, EM_FIRST = 50, 3, 1e-4, 0.1


# ------------------------------------------------------------------------------------------------------------- overlap


def overlap_agreement(agrees_P: NDArray[np.bool_], prompt_P: NDArray[np.integer], confidence: float = 0.95) -> Interval:
    """Estimate the agreement on pairs with both labels: the mean and equal-tailed interval of a Beta(½ + k/D, ½ + (n − k)/D) posterior.

    Labels of one prompt are alike, so the counts are divided by the design effect D ≥ 1: the variance of the share over clusters against
    that of independent labels (Rao & Scott 1992). ``n`` of the result counts prompts.

    Args:
        agrees_P: whether both labels are equal, at least one.
        prompt_P: prompt of each pair, any integers.
    """
    _, cluster_P, counts_C = np.unique(prompt_P, return_inverse=True, return_counts=True)
    share, n = float(agrees_P.mean()), len(agrees_P)
    residual_C = np.bincount(cluster_P, agrees_P - share)
    independent = n * share * (1 - share)
    clusters = len(counts_C)
    variance = float((residual_C**2).sum()) * clusters / max(clusters - 1, 1)
    effect = max(1.0, variance / independent) if independent > 0 else float(counts_C.mean())
    a, b = 0.5 + agrees_P.sum() / effect, 0.5 + (n - agrees_P.sum()) / effect
    tail = (1 - confidence) / 2
    low, high = beta_quantiles(a, b, (tail, 1 - tail))
    return Interval(value=a / (a + b), low=low, high=high, n=clusters)


def beta_quantiles(a: float, b: float, levels: Sequence[float], cells: int = 200_000) -> list[float]:
    """Quantiles of Beta(a, b), a, b ≥ ½, to about 1e-5.

    With x = sin²t the density of t is ∝ sin^(2a−1) t·cos^(2b−1) t on [0, π/2], bounded for a, b ≥ ½, and is summed at midpoints.
    """
    t = (np.arange(cells) + 0.5) * (np.pi / 2 / cells)
    log_density = (2 * a - 1) * np.log(np.sin(t)) + (2 * b - 1) * np.log(np.cos(t))
    mass = np.cumsum(np.exp(log_density - log_density.max()))
    at = np.searchsorted(mass, np.asarray(levels) * mass[-1])
    return [float(x) for x in np.sin(t[np.minimum(at, cells - 1)]) ** 2]


# ----------------------------------------------------------------------------------------------------------- estimates


@dataclass(frozen=True)
class Trust:
    """Trust in the labels of P pairs.

    Attributes:
        agreement: by group of ``ProxyPairs.group_P``, golden left out: a_s with its bootstrap interval; ``n`` counts prompts.
        noise: η of each group that q is computed with. 1 − a_s, or for a biased source the η at which the mean of q is a_s.
        deviations: by group, where golden labels gave the estimate.
        probability_P: q of each pair's label; 1 for golden pairs.
        people_P: P(people prefer the stated winner) before the label itself is taken into account, out of fold.
        golden_loss: mean calibrated out-of-fold loss of golden pairs in nats, log 2 for a head that knows nothing; None without any.
        heads, scale: of each fold, and the factor that calibrates their margins.
    """

    agreement: dict[int, Interval]
    noise: dict[int, float]
    deviations: dict[int, Deviation]
    probability_P: Floats
    people_P: Floats
    golden_loss: float | None
    heads: list[Head]
    scale: float

    def people(self, difference_PD: Floats, fold_P: NDArray[np.integer]) -> Floats:
        """P(people prefer the first response) of other pairs, (P,), each by the head of its fold."""
        people_P = np.empty(len(fold_P))
        for fold, head in enumerate(self.heads):
            own = fold_P == fold
            people_P[own] = inside(sigmoid(self.scale * head.margins(difference_PD[own])))
        return people_P


def reward_model_trust(pairs: ProxyPairs, ridge: float, *, samples: int = 200, confidence: float = 0.95, seed: int = 0) -> Trust:
    """Estimate trust from golden pairs; see the module docstring. Needs golden pairs in at least two folds.

    The intervals resample prompts, of golden pairs and of the source's: the head of a resample is one Newton step from the fitted one
    (the one-step bootstrap), with a temperature of its own.
    """
    golden_P = pairs.golden_P
    fitted = CrossFit(pairs, ridge)
    heads = fitted.fit(golden_P.astype(np.float64))
    margin_P = fitted.out_of_fold(heads)
    scale = temperature(margin_P[golden_P], pairs.weight_P[golden_P])
    people_P = inside(sigmoid(scale * margin_P))
    resampled_BP, golden_count_BP = _resampled_margins(pairs, heads, ridge, samples, seed)
    people_BP = inside(sigmoid(np.concatenate([scale * margin_P[None], resampled_BP])))
    golden_weight_BP = np.concatenate([np.ones_like(golden_count_BP[:1]), golden_count_BP]) * pairs.weight_P[golden_P]
    noise, agreement, deviations = dict[int, float](), dict[int, Interval](), dict[int, Deviation]()
    for group in _sources(pairs):
        own = pairs.group_P == group
        count_BP, prompts = _resampled_counts(pairs.prompt_P[own], samples, seed + 1 + group)
        weight_BP = count_BP * pairs.weight_P[own]
        noise_B = noise_rates(people_BP[:, own], weight_BP)
        found = deviation(own_preferences(pairs, group), people_BP, noise_B, own, golden_P, weight_BP, golden_weight_BP)
        deviations[group], noise[group] = found, float(noise_B[0])
        if found.biased:
            value, (low_B, high_B) = float(found.agreement_B[0]), found.bounds_B
            ends = percentiles(low_B[1:], confidence)[0], percentiles(high_B[1:], confidence)[1]
            agreement[group] = _interval(value, np.array(ends), 1.0, prompts)
            noise[group] = noise_of_agreement(people_P[own], pairs.weight_P[own], value)
        else:
            agreement[group] = _interval(1 - noise[group], 1 - noise_B[1:], confidence, prompts)
    weight = pairs.weight_P[golden_P]
    loss = float(weight @ preference_loss(scale * margin_P[golden_P]) / weight.sum())
    q_P = label_probability(people_P, _noise_of_pairs(pairs, noise))
    return Trust(agreement, noise, deviations, q_P, people_P, loss, heads, scale)


def held_out_label_probabilities(pairs: ProxyPairs, trust: Trust, ridge: float) -> Floats:
    """q of every pair for each held-out fold, (K, P): row k has seen the golden labels of fold k in two numbers only, temperature and η.

    A search that scores golden pairs of a fold after training on labels weighted by q needs this: q of :func:`reward_model_trust`
    carries the golden labels of all folds but the pair's own, those of the scored fold included.
    """
    golden_P = pairs.golden_P
    noise_P = _noise_of_pairs(pairs, trust.noise)
    fitted = CrossFit(pairs, ridge)
    heads = fitted.fit(golden_P.astype(np.float64))
    scale = temperature(fitted.out_of_fold(heads)[golden_P], pairs.weight_P[golden_P])
    people_KP = np.stack([inside(sigmoid(scale * head.margins(pairs.difference_PD))) for head in heads])
    return np.stack([label_probability(people_P, noise_P) for people_P in people_KP])


def em_trust(pairs: ProxyPairs, ridge: float, *, samples: int = 200, confidence: float = 0.95, seed: int = 0) -> Trust:
    """Estimate trust by expectation maximisation on all labels; see the module docstring. Golden pairs, if any, keep q = 1.

    The first :data:`EM_BURN_IN` steps keep η at :data:`EM_FIRST`, so that the head first learns what most labels say. The intervals
    resample prompts at the final head: they are conditional on it, and too narrow for few pairs.
    """
    groups = _sources(pairs)
    noise = dict.fromkeys(groups, EM_FIRST)
    q_P = np.ones(len(pairs))
    fitted = CrossFit(pairs, ridge)
    for step in range(EM_STEPS):
        fitted.label_P = q_P
        heads = fitted.fit(np.ones(len(pairs)))
        people_P = inside(sigmoid(fitted.out_of_fold(heads)))
        before = noise
        if step >= EM_BURN_IN:
            noise = {g: noise_rate(people_P[pairs.group_P == g], pairs.weight_P[pairs.group_P == g], 0.5) for g in groups}
        q_P = label_probability(people_P, _noise_of_pairs(pairs, noise))
        if step > EM_BURN_IN and max((abs(noise[g] - before[g]) for g in groups), default=0.0) < EM_CHANGE:
            break
    agreement = {}
    for group in groups:
        own = pairs.group_P == group
        count_BP, prompts = _resampled_counts(pairs.prompt_P[own], samples, seed + 1 + group)
        drawn_B = noise_rates(np.broadcast_to(people_P[own], count_BP[1:].shape), count_BP[1:] * pairs.weight_P[own], 0.5)
        agreement[group] = _interval(1 - noise[group], 1 - drawn_B, confidence, prompts)
    return Trust(agreement, noise, {}, q_P, people_P, None, heads, 1.0)


def _sources(pairs: ProxyPairs) -> list[int]:
    return [int(group) for group in np.unique(pairs.group_P) if group != GOLDEN]


def _resampled_counts(prompt_P: NDArray[np.integer], samples: int, seed: int) -> tuple[Floats, int]:
    """How often each pair is drawn, (1 + B, P), prompts as wholes; row 0: once. And the number of prompts."""
    _, number_P = np.unique(prompt_P, return_inverse=True)
    prompts = int(number_P.max()) + 1
    return np.concatenate([np.ones((1, len(prompt_P))), draw_counts(prompts, samples, seed)[:, number_P]]), prompts


def _interval(value: float, drawn_B: Floats, confidence: float, prompts: int) -> Interval:
    low, high = percentiles(drawn_B, confidence)
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)), n=prompts)


def _noise_of_pairs(pairs: ProxyPairs, noise: dict[int, float]) -> Floats:
    """η of each pair's group, 0 for golden pairs."""
    rate_G = np.zeros(int(pairs.group_P.max()) + 1)
    for group, rate in noise.items():
        rate_G[group] = rate
    rate_P: Floats = rate_G[pairs.group_P]
    return rate_P


def _resampled_margins(pairs: ProxyPairs, heads: Sequence[Head], ridge: float, samples: int, seed: int) -> tuple[Floats, Floats]:
    """Calibrated out-of-fold margins (B, P) of heads after one Newton step on resampled golden prompts, and how often each golden pair is
    drawn, (B, golden pairs)."""
    golden_P = pairs.golden_P
    _, prompt_P = np.unique(pairs.prompt_P[golden_P], return_inverse=True)
    counts_BC = draw_counts(int(prompt_P.max()) + 1, samples, seed)
    difference, weight, fold = pairs.difference_PD[golden_P], pairs.weight_P[golden_P], pairs.fold_P[golden_P]
    margin_BP = np.empty((samples, len(pairs)))
    for number, head in enumerate(heads):
        kept = weight * (fold != number)
        p_P = sigmoid(head.margins(difference))
        slope_CD = np.zeros((counts_BC.shape[1], difference.shape[1]))
        np.add.at(slope_CD, prompt_P, (kept * (p_P - 1))[:, None] * difference)
        inverse_DD: Any = np.linalg.inv(hessian(difference, kept * p_P * (1 - p_P), ridge))
        theta_BD = head.theta_D - (counts_BC - 1.0) @ slope_CD @ inverse_DD
        own = pairs.fold_P == number
        margin_BP[:, own] = theta_BD @ pairs.difference_PD[own].T
    scale_B = temperatures(margin_BP[:, golden_P], counts_BC[:, prompt_P] * weight)
    return scale_B[:, None] * margin_BP, counts_BC[:, prompt_P]

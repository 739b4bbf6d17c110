"""What to label next: the pairs of responses whose label by a person would change most, without near-copies among them.

Three rules. None is shown to make a better policy than random pairs (``tests/benchmarks/bench_label_suggest.py``, 12 worlds).
:data:`DEFAULT` is the one that needs no race:

* ``information``: the expected fall of the variance of the policy's margins on golden text. With the Gaussian (Laplace) posterior of a
  Bradley-Terry head, of precision A = ridge + Σ_p known_p·v_p·φ_p·φ_pᵀ, v = σ(m)(1 − σ(m)), a label by a person adds c·φ·φᵀ,
  c = v·(1 − known), and the mean margin variance tr(T·A⁻¹) falls by c·φᵀA⁻¹TA⁻¹φ/(1 + c·φᵀA⁻¹φ) (Sherman-Morrison). T is the second moment
  of the pairs' features under the weights h: the golden distribution, on which the policy is to be right. This is V-optimal design (Cohn,
  Ghahramani & Jordan 1996) for preferences, the variance counterpart of expected predictive information gain (Bickford Smith et al. 2023,
  arXiv 2304.08151); information about parameters alone (BALD, D-optimality) would seek odd texts that no golden prompt resembles.
  *known* is what the synthetic label tells already: weight·(2q − 1)², the Fisher information of a label that is right with probability q.
* ``committee``: h·(disagreement of the race's members + entropy of the label's trust). Disagreement is the Jensen-Shannon divergence of
  the members' cross-fitted probabilities under their shares: the mutual information between the label and the member (BALD, Houlsby et
  al. 2011, arXiv 1112.5745).
* ``uncertainty``: entropy of P(people prefer the first response), whatever the text.

Diversity: pairs are taken one by one. ``information`` updates A after each, so that a near-copy has little left to tell; the other
rules multiply their score by the same quantity, the variance φᵀ(1 + Σ_taken φφᵀ)⁻¹φ that the taken pairs leave (greedy determinantal
selection, Chen et al. 2018, arXiv 1709.05135). Of one prompt at most one pair is taken while other prompts have any.

Left out: the label's cost, and answers that change the next question (the tasks are one batch).

Shape legend: N candidates, P known pairs, D features, M members.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dora_core.evaluation.metrics import sigmoid

Floats = NDArray[np.float64]
Rule = Literal["information", "committee", "uncertainty"]

RULES: tuple[Rule, ...] = get_args(Rule)
DEFAULT: Rule = "information"
TINY = 1e-12


@dataclass(frozen=True)
class Candidates:
    """Pairs that a person could label.

    Attributes:
        difference_ND: features of the first response minus those of the second.
        prompt_N: hash of the prompt, any integers.
        factor_N: h ≥ 0 of the pair's record.
        margin_MN: margins in nats of log-odds of the race's members, none of which saw the prompt.
        share_M: the members' probabilities, which sum to 1.
        people_N: P(people prefer the first response), before the synthetic label is taken into account.
        trust_N: probability q that the synthetic label is right; ½ without a label.
        weight_N: weight of the pair in the training as it is; 0 without a label.
    """

    difference_ND: Floats
    prompt_N: NDArray[np.integer]
    factor_N: Floats
    margin_MN: Floats
    share_M: Floats
    people_N: Floats
    trust_N: Floats
    weight_N: Floats

    def __len__(self) -> int:
        return len(self.prompt_N)

    @property
    def disagreement_N(self) -> Floats:
        """Mutual information of label and member, nats, (N,)."""
        p_MN = sigmoid(self.margin_MN)
        return np.maximum(entropy(self.share_M @ p_MN) - self.share_M @ entropy(p_MN), 0.0)

    @property
    def known_N(self) -> Floats:
        """Share of a person's label that the synthetic one tells already, in [0, 1], (N,)."""
        known_N: Floats = np.clip(self.weight_N, 0.0, 1.0) * (2 * self.trust_N - 1) ** 2
        return known_N


@dataclass(frozen=True)
class GoldenPairs:
    """Pairs that people have labelled: features of their differences (P, D), and P(people prefer the first response), (P,)."""

    difference_PD: Floats
    people_P: Floats


@dataclass(frozen=True)
class Suggestion:
    """Suggested pairs in the order they were taken.

    Attributes:
        positions: among the candidates, (n,).
        gain: value of each when it was taken, in units of the rule, (n,).
    """

    positions: NDArray[np.int64]
    gain: Floats


def entropy(p: Floats) -> Floats:
    """Entropy of a coin in nats, elementwise; 0 at 0 and 1."""
    inside = np.clip(p, TINY, 1 - TINY)
    return np.where((p <= 0) | (p >= 1), 0.0, -inside * np.log(inside) - (1 - inside) * np.log(1 - inside))


def suggest(
    candidates: Candidates, number: int, rule: Rule = DEFAULT, *, golden: GoldenPairs | None = None, ridge: float = 1.0
) -> Suggestion:
    """Take ``number`` candidates, or all if there are fewer.

    Args:
        golden: for ``information``: what people have labelled already; None: nothing.
        ridge: for ``information``: of the head's fit, in the unit of labels.
    """
    number = min(number, len(candidates))
    if rule == "information":
        return _by_information(candidates, number, golden, ridge)
    score_N = entropy(candidates.people_N)
    if rule == "committee":
        score_N = candidates.factor_N * (candidates.disagreement_N + entropy(candidates.trust_N))
    return _by_score(candidates, score_N, number)


def random_choice(prompt_N: NDArray[np.integer], number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Positions of ``number`` candidates in random order, of different prompts first: what the rules are compared with."""
    order = rng.permutation(len(prompt_N))
    _, first = np.unique(prompt_N[order], return_index=True)
    of_prompt = np.sort(first)
    return np.concatenate([order[of_prompt], np.delete(order, of_prompt)])[:number]


class _Taking:
    """Pairs that are left while others are taken: of one prompt one, until every prompt has one."""

    def __init__(self, prompt_N: NDArray[np.integer]):
        self._prompt_N, self._taken_N, self._round_N = prompt_N, np.zeros(len(prompt_N), bool), np.zeros(len(prompt_N), bool)
        self.order: list[int] = []
        self.gain: list[float] = []

    def take(self, value_N: Floats) -> int:
        """Take the candidate of the largest value; the first of equal ones."""
        if (self._taken_N | self._round_N).all():
            self._round_N[:] = False
        chosen = int(np.where(self._taken_N | self._round_N, -np.inf, value_N).argmax())
        self._taken_N[chosen] = True
        self._round_N |= self._prompt_N == self._prompt_N[chosen]
        self.order.append(chosen)
        self.gain.append(float(value_N[chosen]))
        return chosen

    def suggestion(self) -> Suggestion:
        return Suggestion(np.array(self.order, np.int64), np.array(self.gain))


def _by_score(candidates: Candidates, score_N: Floats, number: int) -> Suggestion:
    taking = _Taking(candidates.prompt_N)
    unit_ND = candidates.difference_ND / np.maximum(np.linalg.norm(candidates.difference_ND, axis=1, keepdims=True), TINY)
    left_ND = unit_ND.copy()  # (1 + Σ_taken φφᵀ)⁻¹φ of every candidate
    for _ in range(number):
        left_N = np.einsum("nd,nd->n", unit_ND, left_ND)
        chosen = taking.take(score_N * left_N)
        along_N = unit_ND @ left_ND[chosen]
        left_ND -= np.outer(along_N / (1 + along_N[chosen]), left_ND[chosen])
    return taking.suggestion()


def _curvature(people_N: Floats) -> Floats:
    """v = p·(1 − p), kept above that of p = .01: one confident mistake must not rule a pair out."""
    p_N = np.clip(people_N, 0.01, 0.99)
    return p_N * (1 - p_N)


def _by_information(candidates: Candidates, number: int, golden: GoldenPairs | None, ridge: float) -> Suggestion:
    phi_ND, v_N = candidates.difference_ND, _curvature(candidates.people_N)
    size = phi_ND.shape[1]
    precision_DD = ridge * np.eye(size) + (phi_ND * (candidates.known_N * v_N)[:, None]).T @ phi_ND
    target_DD = (phi_ND * (candidates.factor_N / max(candidates.factor_N.sum(), TINY))[:, None]).T @ phi_ND
    if golden is not None and len(golden.people_P):
        psi_PD = golden.difference_PD
        precision_DD += (psi_PD * _curvature(golden.people_P)[:, None]).T @ psi_PD
        target_DD = (target_DD + psi_PD.T @ psi_PD / len(psi_PD)) / 2
    gain_N = v_N * (1 - candidates.known_N)
    covariance_DD = np.linalg.inv(precision_DD)
    left_ND = phi_ND @ covariance_DD  # A⁻¹φ of every candidate
    taking = _Taking(candidates.prompt_N)
    for _ in range(number):
        variance_N = np.einsum("nd,nd->n", phi_ND, left_ND)
        fall_N = np.einsum("nd,nd->n", left_ND @ target_DD, left_ND)
        chosen = taking.take(gain_N * fall_N / (1 + gain_N * variance_N))
        along_N = phi_ND @ left_ND[chosen]
        left_ND -= np.outer(along_N * gain_N[chosen] / (1 + gain_N[chosen] * along_N[chosen]), left_ND[chosen])
    return taking.suggestion()

"""Bias of a source: labels that deviate from people's systematically, and what is left of their agreement.

A source that reverses people's labels at random, with probability η, prefers the first response of a pair with probability
r = (1 − η)p + η(1 − p), p that of people. A *biased* source has a judgement of its own, l: it likes length, say. With g = sign(l − r) of
the source's own head, out of fold,

    deviation = E_source[g·(1 − r)] − (1 − 2η)·E_golden[g·(1 − p)],

both over pairs in the orientation of their label, is an estimate of E|l − r| from below. The second term makes it robust: an error of the
golden head is in both, so labels as good as people's deviate by 0 however bad that head is, where golden pairs and the source's are alike
(the correction of prediction-powered inference, Angelopoulos et al. 2023, arXiv 2301.09633). Deviation from η = 0, D, is the least
share of the source's labels that people contradict; P(contradiction) = E[l(1 − p) + (1 − l)p] =: I if, given the texts, people and source
are independent. The truth is between: a judge's own noise contradicts people independently, labels copied from people do not, and golden
labels alone cannot tell them apart. The estimate takes of the rest, I − D, the more the more of the contradictions are systematic:

    agreement = 1 − D − (D/I)²·(I − D),        between 1 − I and 1 − D.

The exponent is a choice, made on seeds 0–2 of ``bench_source_value`` and checked on others (``dora_core/README.md``). Which of the two
models holds, reversal or bias, is decided by the deviation from the best η: bias where it exceeds 0 by more than :data:`ERRORS` standard
errors.

Shape legend: P pairs, B bootstrap resamples (row 0: the data as they are).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dora_core.evaluation.metrics import sigmoid
from dora_core.selection.proxy import CrossFit, Floats, ProxyPairs, choose_ridge
from dora_core.selection.reversal import temperature

ERRORS = 3.0


@dataclass(frozen=True)
class Deviation:
    """Deviation of one source's labels from people's.

    Attributes:
        unexplained_B: from the best reversal rate of each resample.
        systematic_B: D, at least 0.
        independent_B: I.
    """

    unexplained_B: Floats
    systematic_B: Floats
    independent_B: Floats

    @property
    def biased(self) -> bool:
        """Whether reversals at random do not explain the labels."""
        return float(self.unexplained_B[0]) > ERRORS * float(self.unexplained_B[1:].std())

    @property
    def agreement_B(self) -> Floats:
        """Share of labels that people would give, under the model of a bias."""
        share_B = np.minimum(self.systematic_B / np.maximum(self.independent_B, 1e-9), 1.0)
        rest_B = np.maximum(self.independent_B - self.systematic_B, 0.0)
        agreement_B: Floats = 1 - self.systematic_B - share_B**2 * rest_B
        return agreement_B

    @property
    def bounds_B(self) -> tuple[Floats, Floats]:
        """Lowest and highest agreement of each resample: contradictions independent of people's labels, or as few as the texts allow."""
        return 1 - np.maximum(self.independent_B, self.systematic_B), 1 - self.systematic_B


def own_preferences(pairs: ProxyPairs, group: int) -> Floats:
    """l: P(the source prefers the first response) of every pair, (P,), by a head of the source's labels, out of fold and calibrated."""
    own_P = pairs.group_P == group
    of_source = ProxyPairs(pairs.difference_PD, (~own_P).astype(int), pairs.prompt_P, pairs.fold_P, pairs.weight_P)
    weight_P = own_P.astype(np.float64)
    fitted = CrossFit(of_source, choose_ridge(of_source, weight_P))
    margin_P = fitted.out_of_fold(fitted.fit(weight_P))
    l_P: Floats = sigmoid(temperature(margin_P[own_P], pairs.weight_P[own_P]) * margin_P)
    return l_P


def deviation(
    own_P: Floats,
    people_BP: Floats,
    noise_B: Floats,
    source: NDArray[np.bool_],
    golden: NDArray[np.bool_],
    source_weight_BP: Floats,
    golden_weight_BP: Floats,
) -> Deviation:
    """Compare a source's labels with people's; see the module docstring.

    Args:
        own_P: l of every pair, in the orientation of its label.
        people_BP: p of every pair under each resample's golden head.
        noise_B: η of each resample.
        source, golden: which pairs are the source's and golden, (P,).
        source_weight_BP, golden_weight_BP: weights of these pairs, ≥ 0.
    """
    found = np.empty((3, len(noise_B)))
    for b, (people_P, noise) in enumerate(zip(people_BP, noise_B, strict=True)):
        expected_P = (1 - noise) * people_P + noise * (1 - people_P)
        weights = source_weight_BP[b], golden_weight_BP[b]
        for row, (model_P, kept) in enumerate(((expected_P, 1 - 2 * noise), (people_P, 1.0))):
            side_P = np.sign(own_P - model_P)
            at_source = np.average((side_P * (1 - model_P))[source], weights=weights[0])
            at_golden = np.average((side_P * (1 - people_P))[golden], weights=weights[1])
            found[row, b] = at_source - kept * at_golden
        found[2, b] = np.average(1 - people_P[source], weights=weights[0])
    return Deviation(found[0], np.maximum(found[1], 0.0), found[2])

"""Label trust against arithmetic by hand, scipy, and worlds whose share of reversed labels is known."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import beta

from dora_core.config.method import TestbedConfig
from dora_core.selection.label_trust import (
    beta_quantiles,
    em_trust,
    held_out_label_probabilities,
    overlap_agreement,
    reward_model_trust,
)
from dora_core.selection.proxy import ProxyPairs
from dora_core.selection.reversal import noise_rate
from dora_core.testbed.mixture import FEATURES, LABEL_STD, Testbed
from tests.dora_core.selection.worlds import pairs_of


def test_overlap_of_independent_pairs_is_jeffreys_interval() -> None:
    # 18 of 24 pairs agree, each of its own prompt. Residuals are ¼ (18 times) and −¾ (6 times): 18/16 + 54/16 = 4.5 = 24·¾·¼, so the
    # design effect is 24/23, which only the small-sample factor C/(C − 1) raises above 1.
    agrees = np.arange(24) < 18
    found = overlap_agreement(agrees, np.arange(24))
    a, b = 0.5 + 18 * 23 / 24, 0.5 + 6 * 23 / 24
    assert found.value == pytest.approx(a / (a + b))
    assert (found.low, found.high) == pytest.approx(tuple(beta.ppf([0.025, 0.975], a, b)), abs=1e-4)
    assert found.n == 24


def test_overlap_of_alike_pairs_counts_prompts() -> None:
    # 8 prompts of 3 equal outcomes, 6 agree: residuals 3·¼ and −3·¾: Σ² = 6·9/16 + 2·81/16 = 13.5, times 8/7, over 24·¾·¼ = 4.5:
    # D = 24/7, so 18/D = 5.25 and 6/D = 1.75.
    agrees, prompt = np.repeat(np.arange(8) < 6, 3), np.repeat(np.arange(8), 3)
    found = overlap_agreement(agrees, prompt)
    assert found.value == pytest.approx(5.75 / 8)
    assert found.low == pytest.approx(beta.ppf(0.025, 5.75, 2.25), abs=1e-4)
    # All agree: no spread to estimate D from, so every prompt counts once, whatever its pairs.
    assert overlap_agreement(np.ones(24, bool), prompt).value == pytest.approx(8.5 / 9)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.5, 30.5), (200.5, 3.5), (1.0, 1.0)])
def test_beta_quantiles_equal_scipys(a: float, b: float) -> None:
    assert beta_quantiles(a, b, (0.025, 0.5, 0.975)) == pytest.approx(list(beta.ppf([0.025, 0.5, 0.975], a, b)), abs=2e-5)


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.4])
def test_reversed_labels_are_found_from_golden_ones(noise: float) -> None:
    pairs = pairs_of([(500, 0.0, 0.0), (1500, noise, 0.0)])
    trust = reward_model_trust(pairs, 3.0, samples=100)
    found = trust.agreement[1]
    assert found.value == pytest.approx(1 - noise, abs=0.05)
    assert found.low - 0.01 <= 1 - noise <= found.high + 0.01 and found.high - found.low < 0.25
    own = pairs.group_P == 1
    assert (trust.probability_P[~own] == 1).all()
    assert trust.probability_P[own].mean() == pytest.approx(found.value, abs=0.002)  # the fixed point above
    assert trust.golden_loss is not None and trust.golden_loss < 0.5


def test_the_posterior_tells_reversed_labels_from_kept_ones() -> None:
    pairs = pairs_of([(500, 0.0, 0.0), (1500, 0.3, 0.0)], seed=3)
    kept = pairs_of([(500, 0.0, 0.0), (1500, 0.0, 0.0)], seed=3)  # the same draws: reversal is the last one
    own = pairs.group_P == 1
    reversed_ = (pairs.difference_PD * kept.difference_PD).sum(axis=1)[own] < 0
    assert reversed_.mean() == pytest.approx(0.3, abs=0.03)
    q = reward_model_trust(pairs, 3.0, samples=10).probability_P[own]
    for low, high in ((0.2, 0.5), (0.5, 0.8), (0.9, 1.0)):  # calibrated: of labels with q in a bin, that share is kept
        inside = (q >= low) & (q < high)
        assert 1 - reversed_[inside].mean() == pytest.approx(q[inside].mean(), abs=0.1)


def test_a_biased_judge_is_trusted_less_than_an_unbiased_one() -> None:
    pairs = pairs_of([(3000, 0.0, 0.0), (1000, 0.0, 0.0), (4000, 0.0, 4.0)])
    trust = reward_model_trust(pairs, 3.0, samples=30)
    assert not trust.deviations[1].biased and trust.deviations[2].biased
    assert trust.agreement[2].high < trust.agreement[1].low
    # Between people and judge as independent as the texts allow, and as alike: mean p and 1 − E|l − p|, see test_source_bias.py.
    low_B, high_B = trust.deviations[2].bounds_B
    assert low_B[0] < trust.agreement[2].value < high_B[0] and trust.agreement[2].low <= low_B[0] and high_B[0] <= trust.agreement[2].high
    assert trust.probability_P[pairs.group_P == 2].mean() == pytest.approx(trust.agreement[2].value, abs=1e-6)


def test_a_judge_of_length_is_not_taken_for_people() -> None:
    """People prefer the longer response in 63 % of pairs, for reasons no feature has; the judge always does."""
    rng = np.random.default_rng(1)
    longer = np.where(rng.random(2000) < 0.63, 1.0, -1.0) * (1 + rng.random(2000))
    difference = np.column_stack([np.where(np.arange(2000) < 1000, longer, np.abs(longer)), rng.standard_normal(2000)])
    group, prompt = (np.arange(2000) >= 1000).astype(int), rng.permutation(2000)
    trust = reward_model_trust(ProxyPairs(difference, group, prompt, prompt % 4, np.ones(2000)), 3.0, samples=50)
    # Reversals explain labels that are each likelier than not by η = 0: the likelihood grows with every p > ½.
    assert noise_rate(trust.people_P[group == 1], np.ones(1000)) == pytest.approx(0, abs=1e-6)
    assert trust.deviations[1].biased and trust.agreement[1].value == pytest.approx(0.63, abs=0.04)
    assert trust.probability_P[group == 1].mean() == pytest.approx(trust.agreement[1].value, abs=1e-6)


def test_q_of_a_held_out_fold_ignores_its_golden_labels() -> None:
    pairs = pairs_of([(300, 0.0, 0.0), (300, 0.2, 0.0)])
    trust = reward_model_trust(pairs, 3.0, samples=10)
    q_KP = held_out_label_probabilities(pairs, trust, 3.0)
    assert q_KP.shape == (4, 600) and (q_KP[:, pairs.golden_P] == 1).all()
    # Two golden labels of fold 1 are exchanged for their mirror images: row 1 moves by the temperature alone.
    turned = np.flatnonzero(pairs.golden_P & (pairs.fold_P == 1))[:20]
    difference = pairs.difference_PD.copy()
    difference[turned] *= -1
    other = held_out_label_probabilities(type(pairs)(difference, pairs.group_P, pairs.prompt_P, pairs.fold_P, pairs.weight_P), trust, 3.0)
    logit = [np.log(q[pairs.group_P == 1] / (1 - q[pairs.group_P == 1])) for q in (*q_KP[:2], *other[:2])]
    # Under one head and two temperatures t, t', logit q differs by (t' − t)·m, proportional to m = logit p; under another head it does not.
    shift = [logit[2] - logit[0], logit[3] - logit[1]]
    own = np.log(0.8 / 0.2)
    linear = [1 - np.corrcoef(change, before - own)[0, 1] ** 2 for change, before in zip(shift, logit[:2], strict=True)]
    assert linear[1] < 1e-3 < linear[0]


def test_expectation_maximisation_finds_the_noisier_source() -> None:
    trust = em_trust(pairs_of([(0, 0.0, 0.0), (1500, 0.05, 0.0), (1500, 0.3, 0.0)]), 3.0, samples=50)
    assert trust.golden_loss is None
    assert trust.agreement[1].value > 0.85 and trust.agreement[2].value == pytest.approx(0.7, abs=0.12)
    assert trust.agreement[2].high < trust.agreement[1].low


def test_expectation_maximisation_is_blind_to_a_shared_bias() -> None:
    # The limit that the module names: all labels share the bias, so they look right.
    trust = em_trust(pairs_of([(0, 0.0, 0.0), (1500, 0.0, 4.0)]), 3.0, samples=20)
    assert trust.agreement[1].value > 0.9


@pytest.mark.parametrize(("shift", "reversed_share"), [(0.0, 0.0), (0.0, 0.2), (0.0, 0.4), (1.0, 0.0)])
def test_agreement_on_the_known_mixture(shift: float, reversed_share: float) -> None:
    """Reversed labels, and judges biased as the testbed's model labellers are, with the mixture's own features: within .05 of the truth."""
    config = TestbedConfig(prompts=900, responses_per_prompt=2, alpha=0.5, shift=shift, sources=1, one_source_per_record=True)
    testbed, rng = Testbed(config), np.random.default_rng(0)
    difference, group, people = [], [], []
    for row in testbed.generate():
        features, gold = zip(
            *((testbed.features(row["prompt"], y), testbed.gold_reward(row["prompt"], y)) for y in row["responses"]), strict=True
        )
        winner = int(row["rewards"][1] > row["rewards"][0])
        if row["labeller"] != "human" and rng.random() < reversed_share:
            winner = 1 - winner
        assert features[0] is not None and features[1] is not None
        difference.append([features[winner][name] - features[1 - winner][name] for name in FEATURES])
        group.append(int(row["labeller"] != "human"))
        # Both labels have noise of LABEL_STD: P(a person prefers the stated winner).
        people.append(NormalDist().cdf((gold[winner] - gold[1 - winner]) / (LABEL_STD * math.sqrt(2))))
    prompt = np.arange(len(group))
    pairs = ProxyPairs(np.array(difference), np.array(group), prompt, prompt % 4, np.ones(len(group)))
    p = np.array(people)[pairs.group_P == 1]
    two = (p**2 + (1 - p) ** 2).mean()
    truth = 1 - (two - p.mean()) / (2 * two - 1)
    found = reward_model_trust(pairs, 0.3, samples=50).agreement[1]
    assert found.value == pytest.approx(min(truth, 1.0), abs=0.05)

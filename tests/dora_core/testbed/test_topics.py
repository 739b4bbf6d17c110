"""Topics of sources: exact marginals, no effect at 0, and the affinities of the docstring."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from dora_core.config.method import TestbedConfig
from dora_core.testbed.mixture import GOLDEN, Testbed
from dora_core.testbed.topics import shares_by_topic

SHARES = np.array([0.25, 0.25, 0.3, 0.2])


def test_without_a_shift_every_topic_has_the_shares_of_the_mixture():
    assert (shares_by_topic(SHARES, 5, 0.0) == SHARES[:, None]).all()


@pytest.mark.parametrize("strength", [0.5, 2.0, 4.0])
def test_topics_are_equally_frequent_and_sources_keep_their_shares(strength):
    share_ST = shares_by_topic(SHARES, 16, strength)
    np.testing.assert_allclose(share_ST.sum(axis=0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(share_ST.mean(axis=1), SHARES, rtol=1e-9)


def test_odds_ratios_are_those_of_the_affinities():
    """Fitting multiplies rows and columns only, so log odds ratios of two sources and two topics stay: 2 sources, 4 topics, strength 1:
    affinities cos(0, π/2, π, 3π/2) and the negative of it; between topics 0 and 2: (1 − (−1)) − (−1 − 1) = 4."""
    share = np.log(shares_by_topic(np.array([0.3, 0.7]), 4, 1.0))
    assert share[0, 0] - share[0, 2] - share[1, 0] + share[1, 2] == pytest.approx(4.0)


def test_the_mixture_draws_the_sources_of_each_topic_and_golden_prompts_follow_the_golden_source():
    bed = Testbed(TestbedConfig(prompts=3000, prompt_shift=2.0))
    rows = bed.generate()
    for topic in ("sleep", "writing"):
        own = [row for row in rows if f" {topic} " in row["prompt"] or row["prompt"].endswith(f" {topic}?")]
        drawn = [s for row in own for s in row["sources"]]
        for source, share in bed.shares_of(own[0]["prompt"]).items():
            assert drawn.count(source) / len(drawn) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / len(drawn)) + 1e-3)
    golden = bed.generate_golden(2000)
    for topic, row in itertools.islice(((t, r) for t in ("sleep", "writing") for r in rows if f" {t} " in r["prompt"]), 1):
        share = bed.shares_of(row["prompt"])[GOLDEN] / bed.shares[GOLDEN] / 16
        seen = sum(f" {topic} " in r["prompt"] or r["prompt"].endswith(f" {topic}?") for r in golden) / 2000
        assert seen == pytest.approx(share, rel=0.25)


def test_ratios_of_prompts_and_of_responses_are_exact():
    bed = Testbed(TestbedConfig(prompts=50, prompt_shift=1.0))
    row = bed.generate()[0]
    x, y = row["prompt"], row["responses"][0]
    shares = bed.shares_of(x)
    expected = math.exp(bed.log_density(GOLDEN, x, y)) / sum(shares[s] * math.exp(q) for s, q in bed.log_densities(x, y).items())
    assert bed.true_ratio(x, y) == pytest.approx(expected, rel=1e-9) and expected <= 1 / shares[GOLDEN]
    # P(topic | s) = P(s | topic)·P(topic)/P(s): the frequency of the topic cancels in the ratio.
    source = bed.sources[1]
    assert bed.log_prompt_ratio(source, x) == pytest.approx(
        math.log(shares[GOLDEN] * bed.shares[source] / shares[source] / bed.shares[GOLDEN])
    )

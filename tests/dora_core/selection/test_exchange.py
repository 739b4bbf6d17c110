"""Exchange rates of sources whose worth is known."""

from __future__ import annotations

import numpy as np
import pytest

from dora_core.evaluation.metrics import Interval
from dora_core.selection.exchange import GRID, NONE, Exchange, _mean_one, _midpoints, exchange_rates, verdict
from dora_core.selection.proxy import ProxyPairs, cross_fitted_golden_loss
from tests.dora_core.selection.worlds import pairs_of

SMALL = (30.0, 10.0, 3.0, 1.0)


@pytest.fixture(scope="module")
def found() -> Exchange:
    """150 golden labels; 300 as good, 300 of which 40 % are reversed, 300 all but reversed."""
    return exchange_rates(pairs_of([(150, 0.0, 0.0), (300, 0.0, 0.0), (300, 0.4, 0.0), (300, 0.9, 0.0)]), ridges=SMALL, samples=300)


def test_sources_are_ordered_as_the_truth_is(found: Exchange) -> None:
    good, noisy, harmful = (found.sources[group].rate.value for group in (1, 2, 3))
    assert good > noisy >= harmful == 0
    assert found.sources[1].verdict == "use" and found.sources[3].verdict == "drop"
    assert found.sources[3].rate.high < 0.3


def test_worth_is_the_rate_times_the_labels(found: Exchange) -> None:
    for source in found.sources.values():
        assert source.labels == 300 and source.worth == pytest.approx(300 * source.rate.value)
        assert source.rate.low <= source.rate.value <= source.rate.high and source.rate.n == 150


def test_the_choice_is_the_lowest_loss_seen(found: Exchange) -> None:
    assert found.losses[NONE] <= found.golden_alone and found.losses[NONE] <= found.all_alike
    for source in found.sources.values():
        assert min(source.profile.values()) == pytest.approx(found.losses[NONE], abs=1e-6)
        assert source.profile.keys() >= set(GRID)


def test_weights_give_the_loss_reported(found: Exchange) -> None:
    pairs = pairs_of([(150, 0.0, 0.0), (300, 0.0, 0.0), (300, 0.4, 0.0), (300, 0.9, 0.0)])
    assert found.weight_P[pairs.golden_P].tolist() == [1.0] * 150
    again = cross_fitted_golden_loss(pairs, found.weight_P, ridge=found.ridge).mean()
    assert again == pytest.approx(found.losses[found.factor], abs=1e-4)


def test_a_factor_that_finds_the_good_half_is_kept() -> None:
    # Group 1 is 300 good and 300 reversed pairs; the factor is 1 on the good ones.
    parts = pairs_of([(150, 0.0, 0.0), (300, 0.0, 0.0), (300, 1.0, 0.0)])
    pairs = ProxyPairs(parts.difference_PD, np.minimum(parts.group_P, 1), parts.prompt_P, parts.fold_P, parts.weight_P)
    good = (parts.group_P == 1).astype(float)
    found = exchange_rates(pairs, {"useless": np.ones(len(pairs)), "trust": good}, ridges=SMALL, samples=100)
    assert found.factor == "trust" and found.losses["trust"] < found.losses[NONE] - 0.005
    assert found.losses["useless"] == pytest.approx(found.losses[NONE], abs=2e-3)
    # Half of the pairs carry twice the weight, and all of it: κ is still a weight per label.
    assert found.sources[1].rate.value > 0.1
    assert found.weight_P[parts.group_P == 1] == pytest.approx(2 * found.sources[1].rate.value)


def test_few_golden_prompts_choose_the_smaller_rate() -> None:
    pairs = pairs_of([(25, 0.0, 0.0), (200, 0.35, 0.0)], seed=1)
    lowest = exchange_rates(pairs, ridges=SMALL, few_prompts=0, samples=100)
    careful = exchange_rates(pairs, ridges=SMALL, few_prompts=26, samples=100)
    assert careful.sources[1].rate.value < lowest.sources[1].rate.value


def test_verdicts() -> None:
    def of(low: float, value: float, high: float) -> str:
        return verdict(Interval(value=value, low=low, high=high, n=9))

    assert of(0.0, 0.3, 1.0) == of(0.0, 0.0, 1.0) == "cannot tell"
    assert of(0.0, 0.0, 0.3) == "drop"
    assert of(0.0, 0.1, 0.3) == of(0.03, 0.1, 1.0) == "weight"
    assert of(0.3, 1.0, 1.0) == "use"


def test_midpoints_by_hand() -> None:
    assert _midpoints(0.0) == [] and _midpoints(0.123) == []
    assert _midpoints(1.0) == [pytest.approx(0.5477)]  # √.3
    assert _midpoints(0.1) == pytest.approx([0.0548, 0.1732])  # √(.1·.03), √(.1·.3)
    assert _midpoints(0.03) == pytest.approx([0.0548])  # none towards 0


def test_factors_have_mean_one_by_source() -> None:
    pairs = pairs_of([(2, 0.0, 0.0), (2, 0.0, 0.0), (1, 0.0, 0.0)])
    pairs = ProxyPairs(pairs.difference_PD, pairs.group_P, pairs.prompt_P, pairs.fold_P, np.array([1.0, 1.0, 3.0, 1.0, 1.0]))
    # Group 1: (3·1 + 1·5)/4 = 2; group 2: .5/1; a factor of 0 throughout stays 0.
    scaled = _mean_one(pairs, np.array([1.0, 1.0, 1.0, 5.0, 0.5]))
    assert scaled == pytest.approx([1, 1, 0.5, 2.5, 1])
    both = _mean_one(pairs, np.array([[1.0, 1.0, 1.0, 5.0, 0.5], [1.0, 1.0, 0.0, 0.0, 2.0]]))
    assert both == pytest.approx(np.array([[1, 1, 0.5, 2.5, 1], [1, 1, 0, 0, 1]]))


def test_golden_pairs_of_one_fold_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two folds"):
        exchange_rates(pairs_of([(1, 0.0, 0.0), (50, 0.0, 0.0)]))

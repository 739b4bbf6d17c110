"""Choice of the method of trust by what the data allow; the estimates themselves have tests beside their module."""

from __future__ import annotations

import numpy as np
import pytest

from dora_core.config.valuation import ExchangeConfig, TrustConfig
from dora_core.errors import DataError
from dora_core.selection.proxy import ProxyPairs
from tasks.stages._value_labels import Labels, Overlap
from tasks.stages._value_trust import estimate_trust


def world(golden: int) -> tuple[Labels, ProxyPairs]:
    """200 records of one source and ``golden`` ones of people, one pair each, all with the label of θ = (1, 0)."""
    rng = np.random.default_rng(0)
    count = golden + 200
    group = np.array([0] * golden + [1] * 200, np.int32)
    difference = rng.normal(size=(count, 2))
    difference *= np.sign(difference[:, :1])
    prompt = np.arange(count).astype(np.uint64)
    pairs = ProxyPairs(difference, group, prompt, np.arange(count) % 5, np.ones(count))
    ids = [str(i) for i in range(count)]
    start, sources = np.arange(count) * 2, np.repeat(group, 2)
    return Labels(["golden", "lm"], group, group == 0, prompt, np.ones(count), ids, sources, start), pairs


@pytest.mark.parametrize(("golden", "method"), [(100, "reward_model"), (10, "em"), (0, "em")])
def test_auto_takes_the_best_method_that_the_labels_allow(golden: int, method: str) -> None:
    labels, pairs = world(golden)
    warnings: list[str] = []
    estimate = estimate_trust(TrustConfig(), ExchangeConfig(), labels, Overlap({}, {}, {}), pairs, warnings)
    assert estimate.method == {1: method} and estimate.agreement[1].value > 0.9
    assert (estimate.held_out is not None) == (method == "reward_model")
    assert bool(warnings) == (method == "em")


def test_overlap_comes_first_where_there_is_enough_of_it() -> None:
    labels, pairs = world(100)
    agrees = np.arange(60) % 4 != 0  # 45 of 60 agree: the mean of Beta(45.5, 15.5) is .746
    overlap = Overlap({1: agrees}, {1: np.arange(60).astype(np.uint64)}, {})
    estimate = estimate_trust(TrustConfig(), ExchangeConfig(), labels, overlap, pairs, [])
    assert estimate.method == {1: "overlap"} and estimate.agreement[1].value == pytest.approx(0.746, abs=0.01)
    few = estimate_trust(TrustConfig(min_overlap=61), ExchangeConfig(), labels, overlap, pairs, [])
    assert few.method == {1: "reward_model"}


def test_a_reward_model_without_golden_labels_is_refused() -> None:
    labels, pairs = world(0)
    with pytest.raises(DataError, match="there are 0 golden-labelled prompts"):
        estimate_trust(TrustConfig(method="reward_model"), ExchangeConfig(), labels, Overlap({}, {}, {}), pairs, [])


def test_off_estimates_nothing() -> None:
    labels, pairs = world(50)
    assert not estimate_trust(TrustConfig(method="off"), ExchangeConfig(), labels, Overlap({}, {}, {}), pairs, []).agreement

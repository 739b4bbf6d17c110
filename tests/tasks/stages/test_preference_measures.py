"""Measures on held-out pairs, by hand: two records of two responses, one of a human."""

from __future__ import annotations

import numpy as np
import pytest

from dora_core.config.method import EvaluateConfig
from dora_core.evaluation.groups import RowGroups
from dora_core.evaluation.metrics import preference_pairs
from tasks.stages._preference_measures import (
    HeldOut,
    Labelled,
    PreferenceMeasures,
    RewardCorrelation,
    by_group,
    by_part,
    lifts,
    measure,
    rank_correlation,
)

OPTIONS = EvaluateConfig(bootstrap_samples=100, min_group=1)
UNKNOWN = RewardCorrelation(implicit=None, likelihood=None, likelihood_start=None)


def held_out(*, twin: bool = False) -> HeldOut:
    """Prompt 0: human over model, margin 2 (right); prompt 1: model over model, margin −1 (wrong). The start ranks both wrong."""
    implicit = {"policy": np.array([3.0, 1.0, 0.0, 1.0])} | ({"erm": np.array([0.0, 0.0, 5.0, 0.0])} if twin else {})
    return HeldOut(
        pairs=preference_pairs([[1.0, 0.0], [1.0, 0.0]]),
        implicit_N=implicit,
        likelihood_N={"policy": np.array([-1.0, -2.0, -1.0, -2.0]), "start": np.array([-2.0, -1.0, -2.0, -1.0])},
        prompt_P=np.array([0, 1]),
        golden_P=np.array([True, False]),
        groups={"source": np.array(["human", "model"], dtype=object), "task": np.array([None, "math"], dtype=object)},
        evaluate=OPTIONS,
    )


def test_parts_by_hand() -> None:
    parts = by_part(held_out())
    assert {name: part.accuracy.policy.value for name, part in parts.items()} == {"all": 0.5, "golden": 1.0, "synthetic": 0.0}
    assert parts["all"].margin.policy.value == 0.5 and parts["golden"].margin.policy.n == 1
    assert {name: rate.value for name, rate in parts["all"].ranking.measured().items()} == {"policy": 1.0, "start": 0.0}
    assert parts["all"].accuracy.start is None, "the start's implicit reward is 0"


def test_a_part_without_pairs_is_missing() -> None:
    all_golden = held_out().__class__(**{**vars(held_out()), "golden_P": np.array([True, True])})
    assert set(by_part(all_golden)) == {"all", "golden"} and set(lifts(all_golden).over_start()) == {"all", "golden"}


def test_groups_leave_out_the_pairs_without_one() -> None:
    tables = by_group(held_out())
    assert tables["source"].keys() == {"human", "model"} and tables["task"].keys() == {"math"}
    math = tables["task"]["math"]
    assert (math.accuracy_policy, math.ranking_policy, math.ranking_start, math.n, math.accuracy.n) == (0.0, 1.0, 0.0, 1, 1)


def test_carried_columns_group_the_pairs_of_their_records() -> None:
    by_annotator = RowGroups(np.array(["bob", None], dtype=object), ("ann", "bob"), merged=0)
    given = HeldOut(**vars(held_out()) | {"columns": {"annotator": by_annotator, "task": by_annotator}})
    found = measure(given, 1.0, None, UNKNOWN)
    assert found.by_column["annotator"].groups.keys() == {"bob"}, "ann has no pair"
    bob = found.by_column["annotator"].groups["bob"]
    assert (bob.accuracy.value, bob.accuracy.n, bob.ranking_start, bob.n) == (1.0, 1, 0.0, 1)
    assert found.by_column["annotator"].without == 1
    assert found.worst_group is not None and found.worst_group.by == "source", "a grouping of one group has no worst one"
    several = RowGroups(np.array(["bob", "ann"], dtype=object), ("ann", "bob"), merged=0)
    nothing = {name: np.array([None, None]) for name in ("source", "task")}
    worst = measure(HeldOut(**vars(held_out()) | {"groups": nothing, "columns": {"source": several}}), 1.0, None, UNKNOWN)
    assert worst.worst_group is not None and (worst.worst_group.by, worst.worst_group.name) == ("column source", "ann")
    assert PreferenceMeasures.model_validate(found.model_dump(mode="json", exclude_unset=True)) == found


def test_lifts_are_paired() -> None:
    found = lifts(held_out(twin=True))
    assert found.start_all.value == 1.0
    assert found.twins["erm"].value == pytest.approx(0.5 - 0.75), "the twin ties on prompt 0 and wins prompt 1"
    assert lifts(held_out()).twins == {}


def test_the_worst_group_the_histogram_and_beta() -> None:
    measures = measure(held_out(twin=True), 0.5, None, UNKNOWN)
    assert measures.worst_group is not None and (measures.worst_group.by, measures.worst_group.name) == ("source", "model")
    assert sum(measures.margins.policy) == sum(measures.margins.twins["erm"]) == 2
    assert measures.reward_calibration.beta == 0.5
    assert measures.reward_calibration.confidence == pytest.approx([1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(-1.0))])
    assert measures.kl is None


def test_what_was_not_measured_is_missing_from_the_dump_and_read_back_as_none() -> None:
    measures = measure(held_out(), 1.0, None, UNKNOWN)
    written = measures.model_dump(mode="json", exclude_unset=True)
    assert "kl" in written and "start" not in written["parts"]["all"]["accuracy"]
    assert written["kl"] is None
    assert PreferenceMeasures.model_validate(written) == measures


def test_rank_correlation_needs_two_different_rewards_and_scores() -> None:
    prompts = np.array([7, 9])
    found = rank_correlation(np.array([1.0, 2.0, 3.0, 1.0]), [[0.0, 1.0, None], [5.0]], prompts, OPTIONS)
    assert found is not None and (found.value, found.n) == (1.0, 1)
    assert rank_correlation(np.array([1.0, 2.0]), [[3.0, 3.0]], prompts, OPTIONS) is None


def labelled(*, pairs: bool) -> HeldOut:
    """Three labelled responses after the four of the pairs: desirable with lr 2 and −1, undesirable with lr −3."""
    scores = {"policy": np.array([3.0, 1.0, 0.0, 1.0, 2.0, -1.0, -3.0])}
    given = vars(held_out()) | {"implicit_N": scores, "likelihood_N": {"policy": -np.arange(7.0), "start": np.arange(7.0)}}
    given["labelled"] = Labelled(np.array([4, 5, 6]), np.array([True, True, False]), np.array([5, 6, 7]), 0)
    if not pairs:
        nothing = {"prompt_P": np.array([], dtype=int), "golden_P": np.array([], dtype=bool), "pairs": preference_pairs([[1.0], [0.0]])}
        given |= nothing | {"groups": {name: np.array([], dtype=object) for name in ("source", "task")}}
    return HeldOut(**given)


@pytest.mark.parametrize("pairs", [True, False])
def test_labels_by_hand(pairs: bool) -> None:
    found = measure(labelled(pairs=pairs), 1.0, None, UNKNOWN).labels
    assert found is not None and (found.desirable, found.undesirable, found.prompts, found.pairs) == (2, 1, 3, 0)
    assert found.accuracy.policy.value == pytest.approx(2 / 3), "−1 is the wrong sign of a desirable response"
    assert found.accuracy_desirable is not None and found.accuracy_desirable.policy.value == 0.5
    assert found.accuracy_undesirable is not None and found.accuracy_undesirable.policy.value == 1.0
    assert found.auc is not None and found.auc.policy.value == 1.0 and found.auc.start is None
    assert found.auc_likelihood is not None and found.auc_likelihood.start is not None
    assert (found.auc_likelihood.policy.value, found.auc_likelihood.start.value) == (1.0, 0.0)


def test_without_pairs_the_measures_of_pairs_are_missing() -> None:
    measures = measure(labelled(pairs=False), 1.0, None, UNKNOWN)
    assert measures.parts == measures.by_source == measures.by_task == {} and measures.lift.over_start() == {}
    assert measures.reward_calibration is None and measures.worst_group is None
    assert measures.margins.edges == [] and measures.reward_confidence.count == []
    assert PreferenceMeasures.model_validate(measures.model_dump(mode="json", exclude_unset=True)) == measures
    assert measure(held_out(), 1.0, None, UNKNOWN).labels is None

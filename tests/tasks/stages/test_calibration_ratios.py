"""c and w of classifier logits: priors, bounds of unlabelled responses, and responses without a number."""

from __future__ import annotations

import numpy as np
import pytest

from dora_core.calibration import LOGIT_LIMIT
from dora_core.errors import ModelError
from tasks.runtime.facts import ScoringFacts
from tasks.runtime.score_cache import Scores
from tasks.stages._calibration_ratios import MOST_UNSCORED, Heads, Ratios, poisoned, undefined
from tasks.tables.artifacts import UNLABELLED


def heads(*prior: bool, gamma: float = 1.0, highest: float = 1.0) -> Heads:
    names = ["bot", "other"][: len(prior)]
    return Heads(names, np.full(len(prior), gamma), np.array(prior), np.full(len(prior), highest))


def scores(**logits: list[float]) -> Scores:
    columns = {f"logit_{name}": np.array(values) for name, values in logits.items()}
    rows = len(next(iter(columns.values())))
    return Scores(ScoringFacts(scored_rows=rows, reused_rows=0, rows_per_second=None), {}, columns, np.arange(rows))


def test_c_is_the_sigmoid_and_the_ratio_is_one_at_equal_odds() -> None:
    c, w = Ratios(scores(bot=[0.0, np.log(3.0), -np.log(3.0)]), heads(False)).of(0, 3)
    assert c[:, 0] == pytest.approx([0.5, 0.75, 0.25])
    assert w[0, 0] == pytest.approx(1.0) and w[1, 0] * w[2, 0] == pytest.approx(1.0) and w[1, 0] != pytest.approx(1.0)


def test_heads_that_tell_nothing_apart_and_responses_without_a_number_get_the_prior() -> None:
    c, w = Ratios(scores(bot=[3.0, np.nan], other=[3.0, np.nan]), heads(True, False, gamma=3.0)).of(0, 2)
    assert c[0, 0] == c[1, 0] == c[1, 1] == 0.25 and c[0, 1] > 0.9
    assert w[0, 0] == w[1, 1] == pytest.approx(1.0)


def test_c_has_the_bound_of_the_golden_share_among_unlabelled_responses() -> None:
    bounded = heads(False, highest=0.6).probabilities({"logit_bot": np.array([-1.0, 0.0, 5.0])})
    assert bounded[2, 0] == 0.6 and bounded[0, 0] < bounded[1, 0] == 0.5


def test_a_part_of_the_rows_is_the_same_part_of_all() -> None:
    ratios = Ratios(scores(bot=[0.1, -0.4, 2.0, 1.0]), heads(False))
    for whole, part in zip(ratios.of(0, 4), ratios.of(1, 3), strict=True):
        assert np.array_equal(whole[1:3], part)


def test_rows_are_counted_once_over_all_heads_that_count() -> None:
    many = 300
    bot, other = np.zeros(many), np.zeros(many)
    bot[0] = other[0] = other[1] = np.nan
    bot[2], other[1], bot[3] = LOGIT_LIMIT + 1, LOGIT_LIMIT + 1, -LOGIT_LIMIT - 1
    found = poisoned(scores(bot=list(bot), other=list(other)), heads(False, True), many)
    assert found == {"in": many, "scored": many - 1, "unscored": 1, "clipped": 2}, "the head other is a prior and does not count"


def test_too_many_responses_without_a_number_are_the_fault_of_the_classifier() -> None:
    rows = 200
    allowed = int(MOST_UNSCORED * rows)
    values = np.zeros(rows)
    values[:allowed] = np.nan
    assert poisoned(scores(bot=list(values)), heads(False), rows)["unscored"] == allowed
    values[: allowed + 1] = np.nan
    with pytest.raises(ModelError, match=f"gave no number to {allowed + 1} of {rows} responses") as caught:
        poisoned(scores(bot=list(values)), heads(False), rows)
    assert "lower classifier.learning_rate" in caught.value.hint


@pytest.mark.parametrize(
    ("form", "golden", "names", "expected"),
    [
        ("paper", 0.0, ["bot"], True),
        ("paper", 0.5, ["bot"], False),
        ("released", 0.5, ["bot", UNLABELLED], True),
        ("released", 0.5, ["bot"], False),
        ("mixture", 0.0, [UNLABELLED], False),
    ],
)
def test_forms_of_h_that_a_mixture_cannot_have(form: str, golden: float, names: list[str], expected: bool) -> None:
    assert undefined(form, np.array([golden, 1 - golden]), names) is expected

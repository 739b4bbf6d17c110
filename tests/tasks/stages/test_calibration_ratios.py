"""c and w of classifier logits: priors, bounds of unlabelled responses, and responses without a number."""

from __future__ import annotations

import numpy as np
import pytest

from dora_core.calibration import LOGIT_LIMIT
from dora_core.errors import ModelError
from tasks.runtime.facts import ScoringFacts
from tasks.runtime.score_cache import Scores
from tasks.stages._calibration_ratios import MOST_UNSCORED, Heads, Ratios, poisoned, separation, undefined
from tasks.stages._classify_facts import GivenPrompt, HeadFacts, Reliability
from tasks.tables.artifacts import UNLABELLED


def heads(*prior: bool, gamma: float = 1.0, highest: float = 1.0, conditional: bool = False) -> Heads:
    names = ["bot", "other"][: len(prior)]
    return Heads(names, np.full(len(prior), gamma), np.array(prior), np.full(len(prior), highest), conditional)


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


def test_given_the_prompt_its_log_ratio_is_subtracted_from_the_bounded_logit() -> None:
    """c(x, y) = .9, .9 and .5, at most .75 where a⁺ bounds it (γ = 1, a⁺ = 1/3); w(x) = 3: odds 3 and 1, divided by 3."""
    columns = {"logit_bot": np.log([9.0, 9.0, 1.0]), "prompt_bot": np.log([1.0, 3.0, 3.0]), "golden_prompt": np.log([2.0, 1.0, 1.0])}
    conditional = heads(False, highest=0.75, conditional=True)
    c = conditional.probabilities(columns)
    assert c[:, 0] == pytest.approx([0.75, 0.5, 0.25])
    assert conditional.prompts(columns) == pytest.approx(np.log([[2.0, 1.0], [1.0, 3.0], [1.0, 3.0]]))
    assert heads(False, conditional=True).probabilities(columns)[0, 0] == pytest.approx(0.9), "without unlabelled rows c has no bound"
    assert heads(False).prompts(columns) is None and heads(False).probabilities(columns)[2, 0] == 0.5


def test_the_ratio_decides_what_a_head_must_separate() -> None:
    """Sources that differ in their prompts alone: told apart by (x, y), not given x."""
    given = GivenPrompt(auc=0.5, auc_low=0.4, auc_high=0.6, auc_family_low=0.4, auc_family_high=0.6, told_apart=False)
    parts = dict.fromkeys(["within_prompt_auc", "log_loss", "ece", "temperature", "prompt_only_auc", "length_only_auc"])
    curve = Reliability(confidence=[], accuracy=[], count=[])
    apart = given.model_dump() | {"told_apart": True, "auc": 0.9}
    head = HeadFacts(n=9, gamma=1.0, **apart, **parts, reliability=curve, given_prompt=given)
    assert separation(head, "joint").told_apart and not separation(head, "conditional").told_apart


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

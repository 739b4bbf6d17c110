"""Rules of the drift stage: thresholds, and what is not judged."""

from __future__ import annotations

import math

import pytest

from dora_core.config.rounds import DriftConfig
from tasks.stages._drift_measures import not_judged, rule


@pytest.mark.parametrize(
    ("value", "verdict", "key"),
    [(0.25, "ok", ""), (0.26, "refit", "refit_share_shift = 0.15"), (0.71, "refuse", "refuse_share_shift = 0.6")],
)
def test_thresholds_apply_to_what_chance_does_not_explain(value, verdict, key):
    found = rule(DriftConfig(), "share_shift", None, value, 0.1, "the shares moved")
    assert found.verdict == verdict and key in found.message and (found.refit_at, found.refuse_at) == (0.15, 0.6)


def test_a_rule_without_thresholds_is_shown_and_a_figure_of_few_rows_says_so():
    config = DriftConfig(refit_growth=None)
    assert rule(config, "growth", None, 9.0, 0.0, "grew").verdict == "ok"
    few = not_judged(config, "h_shift", "bot", "3 rows")
    assert few.verdict == "not judged" and few.value is None and few.refit_at == 0.2 and "3 rows" in few.message


def test_the_excess_over_chance_is_what_rules_are_ordered_by():
    assert rule(DriftConfig(), "share_shift", None, 0.5, 0.1, "moved").excess == pytest.approx(0.4)
    assert not_judged(DriftConfig(), "h_shift", "bot", "3 rows").excess == -math.inf

"""Measures of a run of a study: series per prompt, and their differences."""

from __future__ import annotations

import numpy as np

from tasks.stages._study_measures import Series


def test_a_series_leaves_out_prompts_where_the_measure_is_undefined() -> None:
    series = Series.of(np.array(["a", "b", "c"]), np.array([1.0, np.nan, 3.0]))
    assert series.ids.tolist() == ["a", "c"] and series.values.tolist() == [1.0, 3.0]


def test_differences_are_taken_on_shared_prompts() -> None:
    ours, theirs = (
        Series(np.array(["a", "b", "d"]), np.array([1.0, 2.0, 4.0])),
        Series(np.array(["b", "c", "d"]), np.array([0.5, 9.0, 1.0])),
    )
    assert ours.minus(theirs).tolist() == [1.5, 3.0]

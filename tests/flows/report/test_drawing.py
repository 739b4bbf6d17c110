"""Common parts of figures."""

from __future__ import annotations

import pytest

from flows.report.drawing import OTHER, PALETTE, bar_chart, colours, draw_curve, draw_stack, panel_grid, short, single_axes, sorted_by


def test_long_names_lose_their_middle_and_a_dollar_starts_no_mathematics() -> None:
    name = "vendor-12/instruct-model-70b-preview-2026-01"
    assert len(short(name)) <= 30 and short(name).startswith("vendor-12/inst") and short(name).endswith("-2026-01") and "…" in short(name)
    assert short("a$b") == r"a\$b"


def test_sorting_is_ascending_and_stable() -> None:
    assert list(sorted_by({"a": 2, "b": 1, "c": 2}, lambda value: -value)) == ["a", "c", "b"]


def test_colours_beyond_the_palette_are_grey() -> None:
    assert colours(len(PALETTE) + 2) == [*PALETTE, OTHER, OTHER]


def test_many_noisy_values_are_drawn_faint_below_their_running_mean() -> None:
    _, axes = single_axes("title", "x", "y")
    draw_curve(axes, list(range(100)), [float(i % 2) for i in range(100)])
    faint, mean = axes.get_lines()
    assert faint.get_alpha() == 0.3 and max(mean.get_ydata()[10:90]) < 0.6
    draw_curve(axes, [0], [1.0])
    assert axes.get_lines()[-1].get_marker() == "o"


def test_layers_of_a_stack_stand_on_each_other() -> None:
    _, axes = single_axes("title", "x", "y")
    draw_stack(axes, [0.0, 1.0, 2.0], {"a": [1, 2], "b": [3, 4]})
    assert [list(patch.get_data().values) for patch in axes.patches] == [[1, 2], [4, 6]]


def test_panels_left_over_are_switched_off() -> None:
    figure, panels = panel_grid(5, columns=4, height=2.0)
    assert len(panels) == 5 and [axes.axison for axes in figure.axes] == [True] * 5 + [False] * 3


def test_a_chart_without_bars_is_none() -> None:
    assert bar_chart("title", "x", {}, []) is None
    figure = bar_chart("title", "x", {"a": 3}, ["3"])
    assert figure is not None and figure.axes[0].patches[0].get_width() == pytest.approx(3)

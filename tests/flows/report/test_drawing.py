"""House style of figures: names, colours, and the pieces that they are made of."""

from __future__ import annotations

import pytest

from dora_core.evaluation.metrics import Interval
from flows.report.drawing import (
    FULL,
    HALF,
    LABEL_CHARACTERS,
    OTHER,
    PALETTE,
    colours,
    draw_curve,
    draw_interval,
    panel_grid,
    short,
    single_axes,
)


def test_long_names_lose_their_middle_and_no_name_starts_mathematics() -> None:
    name = "vendor/" + "x" * 40 + "-7b-v2"
    assert len(short(name)) <= LABEL_CHARACTERS
    assert short(name).startswith("vendor/") and short(name).endswith("-7b-v2") and "…" in short(name)
    assert short("a$b") == r"a\$b"


def test_colours_past_the_palette_are_grey() -> None:
    assert colours(2) == PALETTE[:2]
    assert colours(len(PALETTE) + 2)[-2:] == [OTHER, OTHER]


def test_a_curve_of_many_noisy_steps_has_a_running_mean_and_one_of_few_has_none() -> None:
    lines = []
    for steps, noisy in ((59, True), (60, True), (60, False)):
        _, axes = single_axes("title", "x", "y")
        draw_curve(axes, list(range(steps)), [float(step % 2) for step in range(steps)], noisy=noisy)
        lines.append(axes.lines)
    assert [len(drawn) for drawn in lines] == [1, 2, 1]
    assert lines[1][1].get_ydata()[30] == pytest.approx(4 / 7), "steps 27 … 33, four of them odd"


def test_an_interval_is_a_line_from_bound_to_bound_and_a_dot_at_the_estimate() -> None:
    _, axes = single_axes("title", "x", "y")
    draw_interval(axes, Interval(value=0.6, low=0.5, high=0.8, n=3), 1.0, PALETTE[0])
    assert axes.collections[0].get_segments()[0].tolist() == [[0.5, 1.0], [0.8, 1.0]]
    assert axes.lines[0].get_xydata().tolist() == [[0.6, 1.0]]


def test_a_grid_has_as_many_panels_as_wanted_and_hides_the_rest() -> None:
    figure, panels = panel_grid(5, columns=4, height=2.0)
    assert len(panels) == 5 and figure.get_figwidth() == FULL
    assert sum(axes.axison for axes in figure.axes) == 5 < len(figure.axes)
    assert panel_grid(1, columns=4, height=2.0)[0].get_figwidth() == HALF

"""Measures over the runs of a project."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.report.past import evaluated, runs_of
from flows.report.trend import Night, measures_figure, nights, rates_figure, trend_figures
from infra.store.store import Store
from tests.flows.report.runs import assert_text_fits, make_run


@pytest.fixture
def found(tmp_path: Path) -> list[Night]:
    store = Store(str(tmp_path / "store"))
    for day in range(1, 13):
        make_run(store, ["human", "model"], run_id=f"demo-202601{day:02}-120000-ab12", started=1_767_225_600.0 + 86_400 * day)
    return nights(store, evaluated(runs_of(store, "demo")))


def test_a_night_has_the_measures_of_its_run(found: list[Night]) -> None:
    assert len(found) == 12 and found[0].day == "01-02"
    assert found[0].measures["win_rate"].value == pytest.approx(0.62) and found[0].measures["accuracy"].low == pytest.approx(0.63)
    assert {name: point.value for name, point in found[0].rates.items()} == {"model": 0.3}


def test_every_run_is_a_point_and_the_text_fits(found: list[Night]) -> None:
    for figure in (measures_figure(found), rates_figure(found)):
        assert figure is not None
        assert_text_fits(figure, ["trend"])
        assert all(len(axes.get_lines()[-1].get_xdata()) == 12 for axes in figure.axes)


def test_a_single_run_has_no_trend(found: list[Night]) -> None:
    assert trend_figures(found[:1]) == [] and measures_figure([]) is None

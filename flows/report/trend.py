"""Measures over the runs of a project, oldest first: win rates, accuracy, KL, effective sample size, exchange rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dora_core.evaluation.metrics import is_defined
from flows.report.drawing import OTHER, PALETTE, STYLE, headline, legend_below, panel_grid, short, single_axes
from flows.report.fonts import fit_fonts
from flows.report.html import markup
from flows.report.past import result_in
from flows.report.rounds import MEASURES, Point
from flows.run_record import RunRecord
from infra.store.store import Store
from tasks.runtime.facts import Facts
from tasks.stages import calibrate, compare, evaluate, value

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

DRAWN = ("win_rate", "at_equal_length", "accuracy", "kl")
FACTS: dict[str, type[Facts]] = {"compare": compare.Facts, "evaluate": evaluate.Facts, "calibrate": calibrate.Facts, "value": value.Facts}


@dataclass(frozen=True)
class Night:
    """One run of a trend: its measures by name (``rounds.MEASURES``), and golden labels that a label is worth, by source."""

    run: RunRecord
    measures: Mapping[str, Point]
    rates: Mapping[str, Point]

    @property
    def day(self) -> str:
        return datetime.fromtimestamp(self.run.started, UTC).strftime("%m-%d")


def nights(store: Store, runs: Sequence[RunRecord]) -> list[Night]:
    """Read the measures of runs, in their order; cached stages count like computed ones."""
    return [_night(store, run) for run in runs]


def _night(store: Store, run: RunRecord) -> Night:
    results = [found for stage, facts in FACTS.items() if (found := result_in(store, run, stage, facts)) is not None]
    measures = {name: point for name, measure in MEASURES.items() if (point := measure.of(results)) is not None}
    valued = next((result.facts.sources for result in results if isinstance(result.facts, value.Facts)), {})
    rates = {name: Point(one.rate.value, one.rate.low, one.rate.high) for name, one in valued.items() if one.rate is not None}
    return Night(run, measures, rates)


def trend_figures(found: Sequence[Night], prefix: str = "trend") -> list[Markup]:
    """Draw the measures that at least two nights have; ``prefix`` is unique on the page."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        drawn = {"measures": measures_figure(found), "rates": rates_figure(found)}
        figures = {name: figure for name, figure in drawn.items() if figure is not None}
        for figure in figures.values():
            fit_fonts(figure)
        return [markup(figure, f"{prefix}-{name}") for name, figure in figures.items()]


def measures_figure(found: Sequence[Night]) -> Figure | None:
    """Small multiples over runs: a dot and its interval per run, a dashed line at chance."""
    shown = [name for name in DRAWN if sum(name in night.measures for night in found) > 1]
    if not shown:
        return None
    figure, panels = panel_grid(len(shown), columns=4, height=2.1)
    headline(figure, "From run to run")
    for axes, name in zip(panels, shown, strict=True):
        points = [(place, night.measures[name]) for place, night in enumerate(found) if name in night.measures]
        ranges = [(place, point.low, point.high) for place, point in points if is_defined(point.low)]
        if (chance := MEASURES[name].chance) is not None:
            axes.axhline(chance, color=OTHER, linewidth=1, linestyle="--")
        if ranges:
            axes.vlines(*zip(*ranges, strict=True), color=PALETTE[0], linewidth=3, alpha=0.4)
        axes.plot([place for place, _ in points], [point.value for _, point in points], "o-", color=PALETTE[0], markersize=4)
        axes.set_title(MEASURES[name].title, fontsize=9)
        _days(axes, found, most=4)
        axes.margins(y=0.15)
    return figure


def rates_figure(found: Sequence[Night]) -> Figure | None:
    """Exchange rate of each source over runs; sources past the palette are left out."""
    names = [name for name in dict.fromkeys(name for night in found for name in night.rates) if sum(name in n.rates for n in found) > 1]
    if not names:
        return None
    figure, axes = single_axes("Golden labels that one label is worth", "run", "exchange rate")
    for colour, name in zip(PALETTE, names, strict=False):
        points = [(place, night.rates[name]) for place, night in enumerate(found) if name in night.rates]
        places = [place for place, _ in points]
        low, high = ([float(getattr(point, end)) for _, point in points] for end in ("low", "high"))
        axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(places, [point.value for _, point in points], "o-", color=colour, markersize=4, label=short(name))
    axes.set_ylim(bottom=0)
    _days(axes, found, most=10)
    legend_below(figure, axes)
    return figure


def _days(axes: object, found: Sequence[Night], most: int) -> None:
    """Label at most ``most`` runs with their day."""
    step = -(-len(found) // most)
    places = list(range(len(found) - 1, -1, -step))[::-1]
    axes.set_xticks(places, [found[place].day for place in places])  # type: ignore[attr-defined]
    axes.set_xlim(-0.4, len(found) - 0.6)  # type: ignore[attr-defined]

"""Comparison of self-training rounds: measures of every round side by side, as a drawing and as rows, and its guard rails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dora_core.evaluation.metrics import Interval, is_defined
from flows.report.drawing import OTHER, PALETTE, STYLE, headline, panel_grid
from flows.report.html import markup
from flows.run_record import RunRecord
from tasks.runtime.descriptor import StageResult
from tasks.stages import calibrate, compare, evaluate, guard, mix

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """A measure of one round; no bounds: it has no interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Measure:
    """A measure that rounds are compared by.

    Attributes:
        stage: its source.
        read: the measure in that stage's facts; None where they do not have it.
        chance: its value for two equal policies.
    """

    title: str
    stage: str
    read: Callable[[Any], Interval | float | None]
    chance: float | None = None

    def of(self, results: list[StageResult[Any]]) -> Point | None:
        """From the first of a round's results that has it."""
        values = (self.read(result.facts) for result in results if result.stage == self.stage)
        value = next((v for v in values if v is not None), None)
        return Point(value.value, value.low, value.high) if isinstance(value, Interval) else None if value is None else Point(value)


def _win_rate(facts: compare.Facts) -> Interval | None:
    return facts.wins["start"].win_rate if "start" in facts.wins else None


def _at_equal_length(facts: compare.Facts) -> Interval | None:
    return facts.wins["start"].length_controlled if "start" in facts.wins else None


def _accuracy(facts: evaluate.Facts) -> Interval | None:
    return facts.parts["all"].accuracy.policy if "all" in facts.parts else None


def _label_auc(facts: evaluate.Facts) -> Interval | None:
    return facts.labels.auc.policy if facts.labels is not None and facts.labels.auc is not None else None


def _kl(facts: evaluate.Facts) -> Interval | None:
    return facts.kl


def _ess(facts: calibrate.Facts) -> float:
    return facts.ess


def _golden_share(facts: mix.Facts) -> float:
    return facts.golden_share


def _rule(name: str) -> Callable[[guard.Facts], float | None]:
    return lambda facts: next((rule.value for rule in facts.rules if rule.name == name), None)


MEASURES = {
    "win_rate": Measure("win rate against the start", "compare", _win_rate, chance=0.5),
    "at_equal_length": Measure("win rate at equal length", "compare", _at_equal_length, chance=0.5),
    "accuracy": Measure("held-out accuracy", "evaluate", _accuracy, chance=0.5),
    "label_auc": Measure("AUC over held-out labels", "evaluate", _label_auc, chance=0.5),
    "kl": Measure("KL to the start (nats)", "evaluate", _kl),
    "ess": Measure("effective sample size", "calibrate", _ess),
    "golden_share": Measure("golden share", "mix", _golden_share),
    "distinct": Measure("distinct bigrams", "guard", _rule("distinct")),
    "self_bleu": Measure("self-BLEU", "guard", _rule("self_bleu")),
}


@dataclass(frozen=True)
class Guard:
    """Rules of one guard stage of a round."""

    label: str
    facts: guard.Facts


@dataclass(frozen=True)
class Row:
    """One round; ``state`` is the worst of its stages'."""

    round: int
    state: str
    measures: dict[str, Point | None]
    guards: list[Guard]


@dataclass(frozen=True)
class Rounds:
    """Content of ``rounds.html``; ``measures``: titles, by name, of the measures that a round has."""

    rows: list[Row]
    measures: dict[str, str]
    figure: Markup | None


def rounds_view(run: RunRecord, results: dict[str, StageResult[Any]]) -> Rounds | None:
    """Content of ``rounds.html``; None for a run without rounds.

    Args:
        run: the manifest; ``round`` of a stage's entry is its round, 0 for the realignment before the first.
        results: by label, of the stages that have one.
    """
    numbers = sorted({entry.round for entry in run.stages if entry.round is not None})
    if not numbers:
        return None
    rows = [_row(run, results, number) for number in numbers]
    measures = {name: measure.title for name, measure in MEASURES.items() if any(row.measures[name] is not None for row in rows)}
    return Rounds(rows, measures, _drawn(rows, measures))


def _row(run: RunRecord, results: dict[str, StageResult[Any]], number: int) -> Row:
    entries = [entry for entry in run.stages if entry.round == number]
    found = {entry.label: results[entry.label] for entry in entries if entry.label in results}
    guards = [Guard(label, result.facts) for label, result in found.items() if result.stage == guard.STAGE.name]
    states = {entry.state for entry in entries}
    state = next((s for s in ("failed", "running", "pending") if s in states), "ran" if "ran" in states else "cached")
    return Row(number, state, {name: measure.of(list(found.values())) for name, measure in MEASURES.items()}, guards)


def _drawn(rows: list[Row], measures: dict[str, str]) -> Markup | None:
    from matplotlib import rc_context

    if not measures:
        return None
    with rc_context(STYLE):
        return markup(rounds_figure(rows, measures), "rounds")


def rounds_figure(rows: list[Row], measures: dict[str, str]) -> Figure:
    """Small multiples over rounds: a dot per round, whiskers where the measure has an interval, a dashed line at chance."""
    figure, panels = panel_grid(len(measures), columns=4, height=1.9)
    headline(figure, "From round to round")
    numbers = [row.round for row in rows]
    for axes, (name, title) in zip(panels, measures.items(), strict=True):
        points = [(row.round, point) for row in rows if (point := row.measures[name]) is not None]
        chance = MEASURES[name].chance
        if chance is not None:
            axes.axhline(chance, color=OTHER, linewidth=1, linestyle="--")
        ranges = [(number, point.low, point.high) for number, point in points if is_defined(point.low)]
        if ranges:
            axes.vlines(*zip(*ranges, strict=True), color=PALETTE[0], linewidth=3, alpha=0.4)
        axes.plot([number for number, _ in points], [point.value for _, point in points], "o-", color=PALETTE[0], markersize=5)
        axes.set_title(title, fontsize=9)
        axes.set_xticks(numbers)
        axes.set_xlim(numbers[0] - 0.4, numbers[-1] + 0.4)
        axes.margins(y=0.15)
    figure.supxlabel("round", fontsize=9)
    return figure

"""How self-training rounds differ: the figures of every round side by side, as a drawing and as rows, and what its guard rails found."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flows.report.drawing import OTHER, PALETTE, STYLE, headline, panel_grid
from flows.report.html import markup
from flows.run_record import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Facts = dict[str, Any]
Read = Callable[[Facts], Any]

MEASURES: dict[str, tuple[str, str, Read]] = {
    "win_rate": ("win rate against the start", "compare", lambda f: f["wins"].get("start", {}).get("win_rate")),
    "at_equal_length": ("win rate at equal length", "compare", lambda f: f["wins"].get("start", {}).get("length_controlled")),
    "accuracy": ("held-out accuracy", "evaluate", lambda f: f["parts"]["all"]["accuracy"]["policy"]),
    "kl": ("KL to the start (nats)", "evaluate", lambda f: f["kl"]),
    "ess": ("effective sample size", "calibrate", lambda f: f["ess"]),
    "golden_share": ("golden share", "mix", lambda f: f["golden_share"]),
    "distinct": ("distinct bigrams", "guard", lambda f: _rule_value(f, "distinct")),
    "self_bleu": ("self-BLEU", "guard", lambda f: _rule_value(f, "self_bleu")),
}
"""Title, the stage it is read from, and how: an interval, a number, or None where that stage does not say."""
CHANCE = {"win_rate": 0.5, "at_equal_length": 0.5, "accuracy": 0.5}


def rounds_view(run: RunRecord, results: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """What ``rounds.html`` shows; None for a run without rounds.

    Args:
        run: the manifest; ``round`` of a stage's entry is its round, 0 for the realignment before the first.
        results: ``result.json`` by label, of the stages that have one.
    """
    numbers = sorted({entry.round for entry in run.stages if entry.round is not None})
    if not numbers:
        return None
    rows = [{"round": number} | _row(run, results, number) for number in numbers]
    measures = {name: title for name, (title, _, _) in MEASURES.items() if any(row["measures"][name] is not None for row in rows)}
    return {"rows": rows, "measures": measures, "figure": _drawn(rows, measures)}


def _row(run: RunRecord, results: dict[str, dict[str, Any]], number: int) -> dict[str, Any]:
    entries = [entry for entry in run.stages if entry.round == number]
    found = [(entry, results[entry.label]["facts"]) for entry in entries if entry.label in results]
    measures = {}
    for name, (_, stage, read) in MEASURES.items():
        values = (read(facts) for entry, facts in found if entry.stage == stage)
        value = next((v for v in values if v is not None), None)
        measures[name] = value if value is None or isinstance(value, dict) else {"value": value, "low": None, "high": None}
    guards = [{"label": entry.label, "facts": facts} for entry, facts in found if entry.stage == "guard"]
    states = {entry.state for entry in entries}
    state = next((s for s in ("failed", "running", "pending") if s in states), "ran" if "ran" in states else "cached")
    return {"state": state, "measures": measures, "guards": guards}


def _rule_value(facts: Facts, name: str) -> float | None:
    return next((rule["value"] for rule in facts["rules"] if rule["name"] == name), None)


def _drawn(rows: list[dict[str, Any]], measures: dict[str, str]) -> Any:
    from matplotlib import rc_context

    if not measures:
        return None
    with rc_context(STYLE):
        return markup(rounds_figure(rows, measures), "rounds")


def rounds_figure(rows: list[dict[str, Any]], measures: dict[str, str]) -> Figure:
    """Small multiples over rounds: a dot per round, whiskers where the measure has an interval, a dashed line at chance."""
    figure, panels = panel_grid(len(measures), columns=4, height=1.9)
    headline(figure, "From round to round")
    numbers = [row["round"] for row in rows]
    for axes, (name, title) in zip(panels, measures.items(), strict=True):
        points = [(row["round"], row["measures"][name]) for row in rows if row["measures"][name] is not None]
        if name in CHANCE:
            axes.axhline(CHANCE[name], color=OTHER, linewidth=1, linestyle="--")
        ranges = [(number, e["low"], e["high"]) for number, e in points if e["low"] is not None]
        if ranges:
            axes.vlines(*zip(*ranges, strict=True), color=PALETTE[0], linewidth=3, alpha=0.4)
        axes.plot([number for number, _ in points], [e["value"] for _, e in points], "o-", color=PALETTE[0], markersize=5)
        axes.set_title(title, fontsize=9)
        axes.set_xticks(numbers)
        axes.set_xlim(numbers[0] - 0.4, numbers[-1] + 0.4)
        axes.margins(y=0.15)
    figure.supxlabel("round", fontsize=9)
    return figure

"""Figures of held-out prompts: preferences (stage ``evaluate``) and responses against other policies' (stage ``compare``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dora_core.config.twins import TWINS
from flows.report.drawing import (
    INK,
    OTHER,
    PALETTE,
    ROLES,
    draw_interval,
    headline,
    legend_below,
    panel_grid,
    role_legend,
    row_axes,
    short,
    single_axes,
    sorted_by,
)
from flows.report.figure_registry import stage_figure
from flows.report.numbers import interval
from tasks.stages import compare, evaluate
from tasks.stages._compare_facts import Wins
from tasks.stages._evaluate_facts import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OPPONENTS: dict[str, str] = {
    "start": "the start",
    "champion": "the champion",
    **{str(name): twin.title for name, twin in TWINS.items()},
    "chosen": "chosen responses",
}
OUTCOMES = {"win": PALETTE[0], "tie": "#c9ced6", "lose": PALETTE[4]}


# ------------------------------------------------------------------------------------------------------------ preferences


@stage_figure("evaluate")
def comparison(facts: evaluate.Facts) -> Figure | None:
    """Accuracy, ranking and margin: a dot and its interval per model, by part of the held-out pairs."""
    titles = {"accuracy": "preference accuracy", "ranking": "ranking accuracy", "margin": "reward margin (nats)"}
    parts = facts.parts
    if not parts:
        return None
    models = max(len(part.ranking.measured()) for part in parts.values())
    figure, panels = panel_grid(len(titles), columns=len(titles), height=0.9 + (0.1 + 0.15 * models) * len(parts), share_y=True)
    labels = [f"{name} ({part.accuracy.policy.n:,} prompts)" for name, part in parts.items()]
    present: set[str] = set()
    for axes, measure in zip(panels, titles, strict=True):
        for row, part in enumerate(parts.values()):
            estimates = getattr(part, measure).measured()
            present |= estimates.keys()
            for place, name in enumerate(n for n in ROLES if n in estimates):
                y = row + 0.6 / models * (place - (len(estimates) - 1) / 2)
                draw_interval(axes, estimates[name], y, ROLES[name][0])
        axes.set_title(titles[measure], fontsize=9)
        axes.axvline(0.0 if measure == "margin" else 0.5, color=OTHER, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(parts)), labels)
        axes.set_ylim(len(parts) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
    role_legend(figure, present)
    return figure


@stage_figure("evaluate")
def twins(facts: evaluate.Facts) -> Figure | None:
    """What the policy gains over every twin, paired by prompt: win rate against the start, and preference accuracy."""
    found = facts.twins
    if not found:
        return None
    titles = {"win_rate_lift": "win rate against the start", "accuracy_lift": "preference accuracy"}
    figure, panels = panel_grid(len(titles), columns=len(titles), height=1.0 + 0.32 * len(found), share_y=True)
    for axes, (measure, title) in zip(panels, titles.items(), strict=True):
        for row, (name, twin) in enumerate(found.items()):
            if (estimate := getattr(twin, measure)) is not None:
                draw_interval(axes, estimate, row, ROLES[name][0])
        axes.axvline(0.0, color=OTHER, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(found)), [short(ROLES[name][1], 36) for name in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_title(f"{title}, policy minus twin", fontsize=9)
        axes.locator_params(axis="x", nbins=6)
        axes.grid(axis="y", visible=False)
    return figure


@stage_figure("evaluate")
def margins(facts: evaluate.Facts) -> Figure | None:
    histogram = facts.margins
    if len(histogram.edges) < 2:
        return None
    figure, axes = single_axes(
        "Reward margins of held-out pairs", "log-ratio of the better response minus that of the worse (nats)", "pairs"
    )
    for name, counts in {"policy": histogram.policy, **histogram.twins}.items():
        colour, label = ROLES[name]
        axes.stairs(counts, histogram.edges, color=colour, label=label, fill=name == "policy", alpha=0.75)
    axes.axvline(0.0, color=INK, linewidth=1, linestyle="--")
    axes.legend()
    return figure


@stage_figure("evaluate")
def reward_confidence(facts: evaluate.Facts) -> Figure | None:
    curve = facts.reward_confidence
    if not curve.bins:
        return None
    figure, axes = single_axes("Accuracy by how clear the preference is", "mean reward gap of the pairs in the bin", "preference accuracy")
    axes.axhline(0.5, color=OTHER, linewidth=1, linestyle="--")
    axes.plot(curve.bins, curve.accuracy, "o-", color=PALETTE[0])
    for x, y, n in zip(curve.bins, curve.accuracy, curve.count, strict=True):
        axes.annotate(f"n={n}", (x, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=7)
    axes.set_ylim(min(0.4, *curve.accuracy) - 0.02, 1.06)
    return figure


@stage_figure("evaluate")
def reward_calibration(facts: evaluate.Facts) -> Figure | None:
    """Confidence of the implicit reward in its order of two responses against its accuracy; an area is a number of pairs."""
    curve = facts.reward_calibration
    if curve is None:
        return None
    figure, axes = single_axes("Is the implicit reward a probability?", "confidence σ(β · margin)", "share of pairs ordered rightly")
    axes.plot([0.5, 1], [0.5, 1], color=OTHER, linewidth=1, linestyle="--")
    axes.vlines(curve.confidence, curve.low, curve.high, color=PALETTE[0], linewidth=2, alpha=0.4)
    areas = [8 + 70 * n / max(curve.count) for n in curve.count]
    axes.plot(curve.confidence, curve.accuracy, color=PALETTE[0], linewidth=1.2)
    axes.scatter(curve.confidence, curve.accuracy, s=areas, color=PALETTE[0], zorder=3)
    axes.set_title(f"ECE {interval(curve.ece)}", fontsize=8, fontweight="normal")
    axes.set(xlim=(0.49, 1.01), ylim=(min(0.45, *curve.low) - 0.02, 1.03))
    return figure


@stage_figure("evaluate")
def by_source(facts: evaluate.Facts) -> Figure | None:
    return _by_group("By source of the better response", facts.by_source)


@stage_figure("evaluate")
def by_task(facts: evaluate.Facts) -> Figure | None:
    return _by_group("By task", facts.by_task)


@stage_figure("evaluate")
def by_column(facts: evaluate.Facts) -> Figure | None:
    """Preference accuracy by the values of carried columns: a panel per column, a dot and its interval per value."""
    tables = {column: found.groups for column, found in facts.by_column.items() if found.groups}
    if not tables:
        return None
    rows = max(map(len, tables.values()))
    figure, panels = panel_grid(len(tables), columns=2, height=0.9 + 0.24 * rows)
    headline(figure, "By carried columns")
    for axes, (column, groups) in zip(panels, tables.items(), strict=True):
        for row, group in enumerate(groups.values()):
            draw_interval(axes, group.accuracy, row, PALETTE[0])
        axes.axvline(0.5, color=OTHER, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(groups)), [f"{short(name, 24)} ({group.accuracy.n:,})" for name, group in groups.items()])
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_xlim(-0.03, 1.03)
        axes.grid(axis="y", visible=False)
        axes.set_title(short(column), fontsize=9)
    figure.supxlabel("preference accuracy (prompts in brackets)", fontsize=9)
    return figure


def _by_group(title: str, groups: dict[str, Group]) -> Figure | None:
    """Ranking accuracy of policy and start, by the source of the better response or by task; largest group first."""
    sources = sorted_by(groups, lambda group: -group.n)
    if not sources:
        return None
    figure, axes = row_axes(title, "ranking accuracy", sources, notes=[f"n={s.n:,}" for s in sources.values()])
    start, policy = [s.ranking_start for s in sources.values()], [s.ranking_policy for s in sources.values()]
    for name, values in (("start", start), ("policy", policy)):
        axes.plot(values, range(len(sources)), "o", color=ROLES[name][0], label=ROLES[name][1])
    axes.hlines(range(len(sources)), start, policy, color=OTHER, linewidth=1.2, zorder=1)
    axes.axvline(0.5, color=OTHER, linewidth=1, linestyle="--")
    legend_below(figure, axes)
    return figure


# -------------------------------------------------------------------------------------------------------- other policies


def wins_of(facts: compare.Facts) -> dict[str, Wins]:
    """Opponents of a comparison in the order in which they are always shown; those named after a file last."""
    return {name: facts.wins[name] for name in [*OPPONENTS, *facts.wins] if name in facts.wins}


def opponent(name: str) -> str:
    """``"the start"``; a file's name as it is."""
    return OPPONENTS.get(name, name)


@stage_figure("compare")
def outcomes(facts: compare.Facts) -> Figure | None:
    """One bar per opponent; the win rate (win + ½ tie) and its length-controlled twin as marks with intervals."""
    wins = wins_of(facts)
    notes = [f"n={w.win_rate.n:,}" for w in wins.values()]
    figure, axes = row_axes("Win, tie, lose", "share of compared pairs", {opponent(name): w for name, w in wins.items()}, notes)
    figure.set_figheight(1.3 + 0.5 * len(wins))
    left = [0.0] * len(wins)
    for kind, colour in OUTCOMES.items():
        widths = [getattr(w, kind).value for w in wins.values()]
        axes.barh(range(len(wins)), widths, left=left, height=0.62, color=colour, alpha=0.75, label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for key, marker, shift, label in (("win_rate", "o", -0.14, "win rate"), ("length_controlled", "D", 0.14, "at equal length")):
        estimates = [getattr(w, key) for w in wins.values()]
        for row, estimate in enumerate(estimates):
            axes.hlines(row + shift, estimate.low, estimate.high, color=INK, linewidth=1.4)
        values, rows = [estimate.value for estimate in estimates], [row + shift for row in range(len(wins))]
        axes.plot(values, rows, marker, color=INK, markersize=4, label=label)
    axes.axvline(0.5, color=INK, linewidth=1, linestyle="--")
    axes.set_xlim(0, 1)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, columnspacing=1.0, handlelength=1.4)
    return figure


@stage_figure("compare")
def win_groups(facts: compare.Facts) -> Figure | None:
    """Win rate by source and by task against every opponent; the worst group of enough prompts in the colour of losing."""
    wins = wins_of(facts)
    tables = {name: {"source": w.by_source, "task": w.by_task} for name, w in wins.items()}
    groups = [(by, name) for by in ("source", "task") for name in sorted({n for table in tables.values() for n in table[by]})]
    if len(groups) < 2:
        return None
    figure, panels = panel_grid(len(wins), columns=3, height=0.9 + 0.24 * len(groups), share_y=True)
    for axes, (name, w) in zip(panels, wins.items(), strict=True):
        for row, (by, group) in enumerate(groups):
            if group in tables[name][by]:
                worst = w.worst_group is not None and (by, group) == (w.worst_group.by, w.worst_group.name)
                draw_interval(axes, tables[name][by][group].win_rate, row, PALETTE[1] if worst else PALETTE[0])
        _mark_groups(axes, groups)
        axes.set_title(f"against {short(opponent(name))}", fontsize=9)
    figure.supxlabel("win rate; orange: the worst group of enough prompts", fontsize=9)
    return figure


def _mark_groups(axes: Axes, groups: list[tuple[str, str]]) -> None:
    axes.axvline(0.5, color=OTHER, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(groups)), [f"{by} {short(name, 24)}" for by, name in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(-0.03, 1.03)
    axes.grid(axis="y", visible=False)

"""Figures of the ``study`` stage: forests of win rates, curves over λ, label noise and golden shift, h against the truth.

An objective has one colour in all of them (erm that of the ERM twin elsewhere, dora that of the aligned policy); variants of one
objective in one figure differ by line style and marker.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from dora_core.evaluation.metrics import is_defined
from dora_core.evaluation.study_statistics import Estimate
from flows.report.drawing import INK, OTHER, PALETTE, ROLES, WIDTH, draw_interval, new_figure, panel_grid, short
from flows.report.figure_registry import stage_figure
from flows.report.study_findings import losses_of, variant
from tasks.stages.study import CellFacts, Facts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "erm": ROLES["erm"][0],
    "dora": PALETTE[0],
    "dro": PALETTE[1],
    "reweight": PALETTE[2],
    "dora_tilted": PALETTE[3],
    "dora_outer": PALETTE[5],
    "dr_dpo": PALETTE[6],
}
STROKES = [("-", "o"), ("--", "s"), (":", "^"), ("-.", "D")]
ROW = 0.235  # inches per row of a forest
LABEL = 46  # characters of a row's label
FORMS = {"mixture": PALETTE[0], "paper": PALETTE[1], "released": PALETTE[2]}


def forest(facts: Facts, table: str) -> Figure | None:
    """One row per cell, grouped by loss: win rate against the start, and its paired difference to erm."""
    cells = facts.cells_of(table)
    if not cells:
        return None
    rows: list[CellFacts | str] = []
    for loss in losses_of(cells):
        rows += [loss, *(c for c in cells if c.params.loss == loss)]
    figure = new_figure(WIDTH, 0.9 + ROW * len(rows))
    panels = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    for axes, measure, title, zero in zip(
        panels,
        ("win_rate", "win_rate_lift"),
        ("win rate against the start", "win rate minus that of erm (paired)"),
        (0.5, 0.0),
        strict=True,
    ):
        axes.axvline(zero, color=OTHER, linewidth=1, linestyle="--")
        for y, cell in enumerate(rows):
            if isinstance(cell, str):
                axes.axhline(y - 0.5, color=OTHER, linewidth=0.5)
            elif measure in cell.estimates:
                _whiskers(axes, cell.estimates[measure], y, _colour(cell))
        axes.set_title(title, fontsize=9)
        axes.grid(axis="y", visible=False)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    panels[0].set_yticks(range(len(rows)), [short(r if isinstance(r, str) else variant(r), LABEL) for r in rows], fontsize=8)
    for label, row in zip(panels[0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if isinstance(row, str) else "normal")
    panels[0].tick_params(axis="y", length=0)
    panels[1].tick_params(axis="y", length=0)
    figure.supxlabel("thick: bootstrap over seeds and prompts; thin: t-interval over seeds", fontsize=8)
    return figure


@stage_figure("study", name="lambda")
def strength(facts: Facts) -> Figure | None:
    """Win rate over λ, one panel per loss; erm, which has none, as a band. Schedules and ``auto`` are at the right."""
    cells = [c for c in facts.cells_of("lambda") if c.params.objective != "erm"]
    if not cells:
        return None
    losses = losses_of(cells)
    figure, panels = panel_grid(len(losses), columns=2, height=2.7, share_y=True)
    for axes, loss in zip(panels, losses, strict=True):
        shown = [c for c in cells if c.params.loss == loss]
        ticks = sorted({c.params.lam for c in shown}, key=_place)
        twin = next((facts.twin_of(c) for c in shown if c.twin), None)
        if twin is not None:
            estimate = twin.estimates["win_rate"]
            axes.axhspan(estimate.low, estimate.high, color=COLOURS["erm"], alpha=0.25, linewidth=0)
            axes.axhline(estimate.value, color=COLOURS["erm"], label="erm")
        for stroke, members in _series(shown, lambda c: (c.params.objective, c.params.factors, c.params.temper)):
            name = variant(members[0]).replace(f" λ={members[0].params.lam}", "")
            numbers = [c for c in members if _place(c.params.lam)[0] == 0]
            numbers.sort(key=lambda c: _place(c.params.lam))
            _line(axes, [ticks.index(c.params.lam) for c in numbers], numbers, stroke, name)
            others = [c for c in members if c not in numbers]
            _line(axes, [ticks.index(c.params.lam) for c in others], others, ("none", stroke[1]), None if numbers else name)
        axes.set_xticks(range(len(ticks)), [short(t, 14) for t in ticks])
        axes.set_title(loss, fontsize=9)
        axes.set_xlabel("λ")
    panels[0].set_ylabel("win rate against the start")
    _shared_legend(figure, panels)
    return figure


def curves(facts: Facts, table: str, setting: str, xlabel: str) -> Figure | None:
    """Win rate over a setting of the data, one line per method and one panel per loss."""
    cells = facts.cells_of(table)
    if not cells:
        return None
    losses = losses_of(cells)
    figure, panels = panel_grid(len(losses), columns=2, height=3.4, share_y=True)
    for axes, loss in zip(panels, losses, strict=True):
        shown = [c for c in cells if c.params.loss == loss]
        series = _series(shown, variant)
        values = sorted({getattr(c.params, setting) for c in shown})
        gap = min((b - a for a, b in itertools.pairwise(values)), default=1.0)
        for position, (stroke, members) in enumerate(series):
            members.sort(key=lambda c: getattr(c.params, setting))
            offset = 0.05 * gap * (position - (len(series) - 1) / 2)  # intervals beside each other, not on each other
            _line(axes, [getattr(c.params, setting) + offset for c in members], members, stroke, variant(members[0]))
        axes.axhline(0.5, color=OTHER, linewidth=1, linestyle="--")
        axes.set_xticks(values, [f"{v:g}" for v in values])
        axes.set_title(loss, fontsize=9)
        axes.set_xlabel(xlabel)
    panels[0].set_ylabel("win rate against the start")
    _shared_legend(figure, panels)
    return figure


@stage_figure("study", name="calibration")
def factors(facts: Facts) -> Figure | None:
    """Every h of the calibration table: correlation with the truth, relative error, effective sample size, divergence."""
    rows = facts.calibration
    if not rows:
        return None
    titles = {
        "pearson": "correlation with truth",
        "error": "relative RMS error",
        "ess": "effective sample size",
        "kl": "KL to golden (nats)",
    }
    figure = new_figure(WIDTH, 0.9 + 0.26 * len(rows))
    panels = figure.subplots(1, len(titles), sharey=True)
    for axes, (measure, title) in zip(panels, titles.items(), strict=True):
        for y, row in enumerate(rows):
            if is_defined(row.estimates[measure].value):
                _whiskers(axes, row.estimates[measure], y, FORMS[row.form])
        axes.set_title(title, fontsize=8)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    panels[0].set_yticks(range(len(rows)), [short(row.label, LABEL) for row in rows], fontsize=8)
    return figure


@stage_figure("study", part="calibration")
def against_truth(facts: Facts) -> Figure | None:
    """Raw h of every form from trained classifiers against the truth, each divided by its mean; a thinned sample of one seed."""
    shown = {row.form: facts.scatter.get(row.label) for row in facts.calibration if row.densities == "classifiers" and row.used == "raw"}
    points = {form: sample for form, sample in shown.items() if sample}
    if not points:
        return None
    most = max(max(sample.truth) for sample in points.values())
    figure, panels = panel_grid(len(points), columns=3, height=3.2, share_y=True)
    for axes, (form, sample) in zip(panels, points.items(), strict=True):
        axes.plot([0, most], [0, most], color=OTHER, linewidth=1, linestyle="--")
        axes.scatter(sample.truth, sample.h, s=9, color=FORMS[form], alpha=0.45, linewidths=0)
        axes.set_title(form, fontsize=9)
        axes.set_xlim(0, 1.04 * most)
    panels[0].set_ylim(0, 1.04 * max(max(sample.h) for sample in points.values()))
    figure.supxlabel("true p_golden/P, mean 1", fontsize=9)
    panels[0].set_ylabel("h from classifiers, mean 1")
    return figure


@stage_figure("study")
def confidence(facts: Facts) -> Figure | None:
    """Within-prompt rank correlation with the gold reward: of the implicit reward, and of the likelihood per token."""
    cells = facts.cells_of("confidence")
    if not cells:
        return None
    titles = {"confidence_implicit": "implicit reward", "confidence_likelihood": "log-likelihood per token"}
    figure = new_figure(WIDTH, 0.9 + ROW * len(cells))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (measure, title) in zip(panels, titles.items(), strict=True):
        shown = [(y, c, c.estimates[measure]) for y, c in enumerate(cells) if measure in c.estimates]
        axes.barh(
            [y for y, _, _ in shown], [e.value for _, _, e in shown], height=0.72, color=[_colour(c) for _, c, _ in shown], alpha=0.55
        )
        axes.hlines([y for y, _, _ in shown], [e.low for _, _, e in shown], [e.high for _, _, e in shown], color=INK, linewidth=1.4)
        axes.axvline(0.0, color=INK, linewidth=0.8)
        axes.set_title(f"{title} and gold reward", fontsize=9)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_ylim(len(cells) - 0.5, -0.5)
    panels[0].set_yticks(range(len(cells)), [short(c.method, LABEL) for c in cells], fontsize=8)
    figure.supxlabel("Spearman's ρ among the responses of a held-out prompt", fontsize=9)
    return figure


@stage_figure("study")
def pairwise(facts: Facts) -> Figure | None:
    return forest(facts, "pairwise")


@stage_figure("study")
def listwise(facts: Facts) -> Figure | None:
    return forest(facts, "listwise")


@stage_figure("study")
def ablation(facts: Facts) -> Figure | None:
    return forest(facts, "ablation")


@stage_figure("study")
def noise(facts: Facts) -> Figure | None:
    return curves(facts, "noise", "label_noise", "share of records with reversed labels")


@stage_figure("study")
def rounds(facts: Facts) -> Figure | None:
    return curves(facts, "rounds", "round", "round")


@stage_figure("study")
def shifted_golden(facts: Facts) -> Figure | None:
    return curves(facts, "shifted_golden", "golden_shift", "shift of the golden reference")


# ------------------------------------------------------------------------------------------------------------- pieces


def _colour(cell: CellFacts) -> str:
    if cell.params.is_baseline:
        return ROLES[cell.params.baseline][0] if cell.params.baseline in ROLES else OTHER
    return COLOURS.get(cell.params.objective, OTHER)


def _whiskers(axes: Axes, estimate: Estimate, y: float, colour: str) -> None:
    """The bootstrap interval thick, the t-interval thin, the estimate as a dot."""
    if is_defined(estimate.t_low):
        axes.hlines(y, estimate.t_low, estimate.t_high, color=colour, linewidth=1)
    draw_interval(axes, estimate, y, colour)


def _series(cells: list[CellFacts], key: Any) -> list[tuple[tuple[str, str], list[CellFacts]]]:
    """Group cells into lines, with a distinct stroke per line of one objective."""
    groups: dict[Any, list[CellFacts]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    used: dict[str, int] = {}
    series = []
    for members in groups.values():
        objective = members[0].params.objective
        series.append((STROKES[used.get(objective, 0) % len(STROKES)], members))
        used[objective] = used.get(objective, 0) + 1
    return series


def _line(axes: Axes, x: list[float], cells: list[CellFacts], stroke: tuple[str, str], label: str | None) -> None:
    estimates = [c.estimates["win_rate"] for c in cells]
    if not estimates:
        return
    value, low, high = ([getattr(e, name) for e in estimates] for name in ("value", "low", "high"))
    spread = [[v - a for v, a in zip(value, low, strict=True)], [b - v for v, b in zip(value, high, strict=True)]]
    axes.errorbar(
        x,
        value,
        yerr=spread,
        color=_colour(cells[0]),
        linestyle=stroke[0],
        marker=stroke[1],
        markersize=4.5,
        elinewidth=1.1,
        capsize=2.5,
        label=label,
    )


def _place(lam: str) -> tuple[int, float, str]:
    """Numbers first, in order; then schedules and auto."""
    try:
        return 0, float(lam), lam
    except ValueError:
        return 1, 0.0, lam


def _shared_legend(figure: Figure, panels: list[Axes]) -> None:
    """One legend below all panels, each label once."""
    entries = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = 3 if max(map(len, entries)) < 34 else 2
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(entries) // columns))
    figure.legend(entries.values(), [short(name, LABEL) for name in entries], loc="outside lower center", ncols=columns, fontsize=8)

"""Style of figures, and their common parts.

Matplotlib's object interface only (no pyplot, no global figure list), a colour-blind-safe palette (Okabe and Ito, 2008) in which
policy, start and twins keep their colours, and :data:`INK` for all text and lines, which the report recolours with the page.
Matplotlib is imported when the first figure is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from dora_core.config.twins import TWINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dora_core.evaluation.metrics import Interval
    from dora_core.evaluation.study_statistics import Estimate

Value = TypeVar("Value")

INK, GRID = "#23272e", "#d9dce1"
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31"]
OTHER = "#9aa0a8"
TWIN_COLOURS = [PALETTE[4], PALETTE[2], PALETTE[5], PALETTE[1]]
ROLES = {"policy": (PALETTE[0], "aligned policy"), "start": (OTHER, "start")} | {
    name: (colour, twin.title) for (name, twin), colour in zip(TWINS.items(), TWIN_COLOURS, strict=True)
}
STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",  # text stays text: it can be selected, and follows the page's font
    "svg.hashsalt": "dora",  # the same figure gives the same bytes
}
WIDTH = 10.0  # inches: of every figure, so that text has one size on a page
LABEL_CHARACTERS = 30


def single_axes(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = new_figure(WIDTH, 2.9)
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    headline(figure, title)
    return figure, axes


def row_axes(title: str, xlabel: str, names: Collection[str], notes: list[str] | None = None) -> tuple[Figure, Axes]:
    """Axes with one labelled row per name, first on top, and notes at the right edge."""
    figure = new_figure(WIDTH, 1.1 + 0.25 * len(names))
    axes = figure.subplots()
    headline(figure, title)
    axes.set_xlabel(xlabel)
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    for row, note in enumerate(notes or []):
        axes.annotate(note, (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    return figure, axes


def bar_chart(title: str, xlabel: str, values: dict[str, int], labels: list[str], colour: str = PALETTE[0]) -> Figure | None:
    if not values:
        return None
    figure, axes = row_axes(title, xlabel, values)
    bars = axes.barh(range(len(values)), list(values.values()), height=0.7, color=colour)
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.margins(x=0.035 * max(map(len, labels)))
    return figure


def panel_grid(count: int, *, columns: int, height: float, share: bool = False, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """``count`` panels, row by row, at most ``columns`` side by side; ``height`` inches per row."""
    beside, rows = min(count, columns), math.ceil(count / columns)
    figure = new_figure(WIDTH, 0.4 + height * rows)
    panels = figure.subplots(rows, beside, squeeze=False, sharex=share, sharey=share or share_y).ravel().tolist()
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def headline(figure: Figure, title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_curve(axes: Axes, steps: list[int], values: list[float], noisy: bool = True) -> None:
    """Draw the values; many noisy ones faint under their running mean."""
    many = noisy and len(values) >= 60
    marker = "o" if len(values) == 1 else None
    axes.plot(steps, values, color=PALETTE[0], alpha=0.3 if many else 1.0, linewidth=0.9 if many else 1.6, marker=marker)
    if many:
        window = len(values) // 20
        means = [sum(chunk) / len(chunk) for i in range(len(values)) for chunk in [values[max(0, i - window) : i + window + 1]]]
        axes.plot(steps, means, color=PALETTE[0])


def draw_interval(axes: Axes, estimate: Interval | Estimate, y: float, colour: str) -> None:
    axes.hlines(y, estimate.low, estimate.high, color=colour, linewidth=3, alpha=0.5)
    axes.plot(estimate.value, y, "o", color=colour, markersize=5)


def draw_stack(axes: Axes, edges: Sequence[float], layers: Mapping[str, Sequence[float]]) -> None:
    base = [0.0] * (len(edges) - 1)
    for colour, (label, counts) in zip(colours(len(layers)), layers.items(), strict=True):
        top = [b + c for b, c in zip(base, counts, strict=True)]
        axes.stairs(top, edges, baseline=base, fill=True, color=colour, label=label)
        base = top


def legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 3 if max(map(len, labels)) < LABEL_CHARACTERS / 2 else 2
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)


def role_legend(figure: Figure, present: Iterable[str]) -> None:
    from matplotlib.lines import Line2D

    shown = [name for name in ROLES if name in present]
    handles = [Line2D([], [], color=ROLES[name][0], marker="o", linewidth=3) for name in shown]
    figure.legend(handles, [ROLES[name][1] for name in shown], loc="outside lower center", ncols=len(shown))


def colours(count: int) -> list[str]:
    return [*PALETTE, *[OTHER] * count][:count]


def short(name: str, limit: int = LABEL_CHARACTERS) -> str:
    """Shorten a long name in its middle, because beginnings and endings (a size, a version) distinguish names; escape ``$``, which starts
    mathematics."""
    half = (limit - 1) // 2
    return (name if len(name) <= limit else f"{name[:half]}…{name[-half:]}").replace("$", r"\$")


def sorted_by(values: Mapping[str, Value], key: Callable[[Value], float]) -> dict[str, Value]:
    """Sort by ``key``, ascending."""
    return dict(sorted(values.items(), key=lambda item: key(item[1])))

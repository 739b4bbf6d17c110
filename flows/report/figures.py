"""Figures of a stage, from its facts: the same ones in MLflow and in the report.

Importing this module imports every ``*_figures.py`` of this folder, which registers its figures (``figure_registry.py``). Style and common
parts are in ``drawing.py``.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.report.drawing import STYLE
from flows.report.figure_registry import FIGURES
from flows.report.fonts import fit_fonts
from tasks.runtime.descriptor import StageResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

for _module in pkgutil.iter_modules([str(Path(__file__).parent)]):
    if _module.name.endswith("_figures"):
        import_module(f"{__package__}.{_module.name}")


def figures_for(result: StageResult[Any]) -> dict[str, Figure]:
    """Every figure that a stage's facts support, by name, in the order of registration; empty for a stage without figures."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        drawn = {name: figure.draw(result.facts) for name, figure in FIGURES.get(result.stage, {}).items()}
    figures = {name: figure for name, figure in drawn.items() if figure is not None}
    for figure in figures.values():
        fit_fonts(figure)
    return figures

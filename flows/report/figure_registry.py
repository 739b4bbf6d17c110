"""Registry of figures. **A new figure** is one decorated function, in a file ``*_figures.py`` of this folder::

    @stage_figure("align")
    def training(facts: align.Facts) -> Figure | None: ...

No other file changes: MLflow gets it with the stage's result, and the report shows it in the stage's section, in the order of registration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = TypeVar("Draw", bound=Callable[[Any], Any])


@dataclass(frozen=True)
class StageFigure:
    """A figure's descriptor.

    Attributes:
        name: unique within its stage; the name of the artifact in MLflow.
        draw: from the stage's facts; None where they do not support the figure.
        part: part of the stage's section that shows it, where the section has parts (a study's tables).
    """

    name: str
    draw: Callable[[Any], Figure | None]
    part: str


FIGURES: dict[str, dict[str, StageFigure]] = {}
"""By stage and name, in the order of registration. ``figures.py`` fills it."""


def stage_figure(*stages: str, name: str = "", part: str = "") -> Callable[[Draw], Draw]:
    """Register a function as a figure of ``stages``; ``name`` is the function's unless given, ``part`` the name."""

    def register(draw: Draw) -> Draw:
        own_name = name or draw.__name__
        figure = StageFigure(own_name, draw, part or own_name)
        for stage in stages:
            of_stage = FIGURES.setdefault(stage, {})
            assert figure.name not in of_stage, f"the stage {stage} has two figures named {figure.name}"
            of_stage[figure.name] = figure
        return draw

    return register

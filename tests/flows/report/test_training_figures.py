"""Figures of the training stages."""

from __future__ import annotations

import pytest

from flows.report.figures import FIGURES
from flows.report.training_figures import CURVES
from tasks.training.facts import TrainingFacts
from tests.flows.report.runs import make_facts


def trained(stage: str, **curve: list[float]) -> TrainingFacts:
    written = make_facts(["human", "model"])[stage]
    return TrainingFacts.model_validate(written | {"curve": written["curve"] | curve})


def test_training_without_weights_has_no_figure_of_them() -> None:
    written = make_facts(["human", "model"])["align"]
    erm = written | {"curve": {name: values for name, values in written["curve"].items() if "weight" not in name}}
    assert {name for name, figure in FIGURES["align"].items() if figure.draw(TrainingFacts.model_validate(erm)) is not None} == {"training"}


def test_every_measure_of_the_curve_has_a_panel() -> None:
    facts = trained("sft")
    figure = FIGURES["sft"]["training"].draw(facts)
    assert [axes.get_title() for axes in figure.axes] == [CURVES[name] for name in CURVES if name in facts.curve.measures]


def test_shares_of_the_weight_are_stacked_to_one() -> None:
    figure = FIGURES["align"]["weight_shares"].draw(trained("align"))
    top = max(patch.get_data().values.max() for patch in figure.axes[0].patches)
    assert top == pytest.approx(1.0)


def test_a_training_without_steps_has_no_figure() -> None:
    assert FIGURES["sft"]["training"].draw(trained("sft", step=[])) is None


def lambda_panel(values: list[float]) -> tuple[list[float], str, list[str]]:
    """What the panel of λ shows: drawn values, scale, texts."""
    facts = trained("align", **{"lambda": values})
    axes = next(axes for axes in FIGURES["align"]["objective_weights"].draw(facts).axes if axes.get_title() == "λ")
    return list(axes.get_lines()[0].get_ydata()), axes.get_yscale(), [text.get_text() for text in axes.texts]


def test_the_first_step_of_lambda_does_not_flatten_the_others() -> None:
    settled = [0.2 + 0.001 * step for step in range(119)]  # .2 to .318
    assert lambda_panel([1e6, *settled]) == (settled, "linear", ["1e+06 at step 0"])
    assert lambda_panel([0.2, *settled]) == ([0.2, *settled], "linear", [])
    over_decades = [10.0**power for power in range(-2, 3) for _ in range(24)]  # the first is not the largest
    assert lambda_panel(over_decades) == (over_decades, "log", [])

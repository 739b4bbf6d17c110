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

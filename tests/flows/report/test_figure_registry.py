"""Registering figures: name, order, part, and a new one in MLflow and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from flows.report import figure_registry
from flows.report.drawing import single_axes
from flows.report.figure_registry import FIGURES, stage_figure
from flows.report.figures import figures_for
from flows.report.page import render
from infra.store.store import Store
from tasks.stages.registry import STAGES
from tests.flows.report.runs import make_facts, make_run, result_of


def test_every_figure_belongs_to_a_stage_and_is_drawn_in_one_file_of_figures() -> None:
    assert FIGURES.keys() <= STAGES.keys()
    files = {figure.draw.__module__ for of_stage in FIGURES.values() for figure in of_stage.values()}
    assert all(name.startswith("flows.report.") and name.endswith("_figures") for name in files)


def test_name_and_part_are_the_functions_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure_registry, "FIGURES", {})

    @stage_figure("ingest", "drift")
    def first(facts: Any) -> None:
        return None

    @stage_figure("ingest", name="lambda", part="table")
    def second(facts: Any) -> None:
        return None

    registered = figure_registry.FIGURES
    assert {stage: list(figures) for stage, figures in registered.items()} == {"ingest": ["first", "lambda"], "drift": ["first"]}
    shown = [(figure.part, figure.draw) for figure in registered["ingest"].values()]
    assert shown == [("first", first), ("table", second)]
    with pytest.raises(AssertionError, match="two figures named first"):
        stage_figure("drift")(first)


def test_a_new_figure_is_one_function_and_appears_for_mlflow_and_in_its_section(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(FIGURES, "drift", {})

    @stage_figure("drift")
    def rules_by_verdict(facts: Any) -> Figure:
        figure, axes = single_axes("Rules by verdict", "verdict", "rules")
        axes.bar([rule.verdict for rule in facts.rules], [1] * len(facts.rules))
        return figure

    assert list(figures_for(result_of("drift", make_facts(["human", "model"])["drift"]))) == ["rules_by_verdict"]
    store = Store(str(tmp_path / "store"))
    page = render(store, make_run(store, ["human", "model"]))
    section = page[page.index('id="drift"') :]
    section = section[: section.index("</section>")]
    assert 'aria-label="drift-rules-by-verdict"' in section

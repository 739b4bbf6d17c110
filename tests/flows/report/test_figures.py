"""Figures of every stage, from facts of the shape that the stages write."""

from __future__ import annotations

import pytest

from flows.report.figures import FIGURES, figures_for
from tests.flows.report.runs import EVIL, MANY, assert_text_fits, make_facts, result_of


@pytest.mark.parametrize("sources", [["human"], MANY, ["human", EVIL]], ids=["one", "fifteen", "evil"])
def test_every_figure_of_every_stage_is_drawn_and_its_text_fits(sources: list[str]) -> None:
    for stage, facts in make_facts(sources).items():
        figures = figures_for(result_of(stage, facts))
        assert set(figures) == set(FIGURES.get(stage, {}))
        for name, figure in figures.items():
            assert_text_fits(figure, (stage, name))


def test_facts_without_content_give_no_figure() -> None:
    facts = make_facts(["human", "model"])
    clean = facts["ingest"] | {"bad_by_reason": {}}
    assert set(figures_for(result_of("ingest", clean))) == {"responses"}
    nothing = facts["classify"] | {"sources": {}, "curve": []}
    assert figures_for(result_of("classify", nothing)) == {}
    assert figures_for(result_of("promote", facts["promote"])) == {}

"""Figures of a study."""

from __future__ import annotations

from io import BytesIO
from itertools import combinations

from matplotlib.axis import Axis
from matplotlib.text import Text

from dora_core.evaluation.study_statistics import TABLES
from flows.report.figures import figures_for
from tests.flows.report.runs import result_of
from tests.flows.report.studies import make_facts


def test_every_table_has_a_figure_and_no_label_leaves_it() -> None:
    drawn = figures_for(result_of("study", make_facts()))
    assert set(drawn) == {*TABLES, "against_truth"}
    for name, figure in drawn.items():
        figure.savefig(BytesIO(), format="png", dpi=80)
        ticks = {tick.label1 for axis in figure.findobj(Axis) for tick in axis.get_major_ticks()}
        shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text() and t not in ticks]
        boxes = {t.get_text(): t.get_window_extent() for t in shown}
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes.values()), (name, boxes)
        overlaps = [(a, b) for a, b in combinations(boxes, 2) if boxes[a].padded(-2).overlaps(boxes[b].padded(-2))]
        assert not overlaps, (name, overlaps)


def test_a_study_of_one_table_has_its_figures_only() -> None:
    facts = make_facts()
    facts |= {"tables": {"pairwise": facts["tables"]["pairwise"]}, "calibration": [], "scatter": {}}
    assert set(figures_for(result_of("study", facts))) == {"pairwise"}

"""The comparison with other policies as Markdown."""

from __future__ import annotations

from flows.report.comparison import comparison_table
from tasks.stages._compare_facts import Facts
from tests.flows.report.runs import estimate, make_facts


def test_the_comparison_as_markdown() -> None:
    written = make_facts(["human", "model"])["compare"]
    written["wins"]["start"]["worst_group"] = {"by": "task", "name": "a|b `c`"} | estimate(0.4)
    written["wins"]["champion"]["worst_group"] = None
    lines = comparison_table(Facts.model_validate(written)).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| the start", "| the champion", "| chosen responses"]
    assert lines[2] == (
        "| the start | 52.0% | 20.0% | 28.0% | **0.620 [0.570, 0.670]** | 0.570 [0.510, 0.630] | < 0.001 | 150 "
        r"| task a\|b \`c\`: 0.400 \[0.370, 0.430\] |"
    )
    assert lines[3].endswith("| – |") and lines[-1].startswith("Judge: reward_model.")
    by_file = comparison_table(Facts.model_validate(written | {"wins": {"other*.parquet": written["wins"]["chosen"]}}))
    assert r"| other\*.parquet |" in by_file

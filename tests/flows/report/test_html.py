"""Common parts of the pages: figures as inline SVG, filters, links."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.report.drawing import GRID, INK
from flows.report.html import render_template, web_links
from flows.report.page import render
from flows.run_record import Links
from infra.store.store import Store
from tests.flows.report.runs import make_run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_figures_take_the_colours_of_the_page(store: Store) -> None:
    html = render(store, make_run(store, ["human"], without=("classify", "sft", "align", "compare", "evaluate")))
    figures = html[html.index("<figure") :]
    assert INK not in figures and GRID not in figures and "currentColor" in figures and "var(--line)" in figures


def test_only_links_that_a_browser_opens_are_shown() -> None:
    links = Links(prefect="http://127.0.0.1:4200/runs/1", mlflow="sqlite:///mlflow.db", ray="javascript:alert(1)")
    assert web_links(links) == {"prefect": "http://127.0.0.1:4200/runs/1"}


def test_an_undefined_name_in_a_template_is_an_error() -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="'run' is undefined"):
        render_template("run_facts.html")

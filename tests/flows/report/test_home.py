"""The home page: runs, champions, trends, data quality, from the store."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows.report.home import PROJECTS, render_home
from infra.store.store import Store
from infra.tracking.model_registry import Registered
from tests.flows.report.runs import EVIL, Page, make_run

PAGES = {"Prefect": "http://127.0.0.1:4200", "MLflow": "http://127.0.0.1:5000"}
CHAMPION = Registered("demo", "3", ("champion",), {"dora.summary": "win rate against the start 0.640"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def text_of(page: Page) -> str:
    return re.sub(r"\s+", " ", page.text[page.text.index("Champions") :])


def hrefs(page: Page) -> list[str]:
    return [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]


def test_runs_are_there_with_verdict_reason_and_links(store: Store) -> None:
    make_run(store, ["human", "model"], run_id="demo-20260131-120000-ab12")
    error = {"message": "stage align: the loss became NaN", "hint": "lower the learning rate"}
    make_run(store, ["human", "model"], run_id="demo-20260201-120000-cd34", status="failed", error=error, decision=None)
    page = Page(render_home(store, PAGES, [CHAMPION], mlflow=PAGES["MLflow"]))
    text = text_of(page)
    assert text.index("stage align: the loss became NaN") < text.index("KL(policy‖start) per response"), "newest first"
    assert {"runs/demo-20260131-120000-ab12", "runs/demo-20260201-120000-cd34"} <= set(hrefs(page))
    assert {*PAGES.values(), "http://127.0.0.1:4200/runs/flow-run/1", "http://127.0.0.1:5000/#/models/demo/versions/3"} <= set(hrefs(page))
    cells = text.replace(" ", "")
    assert "demo3championwinrateagainstthestart0.640" in cells
    assert "12,345rowsread0.5%quarantined11,060+1,228recordstotrainon+heldout2sourcesrefit" in cells
    assert "the win against the champion may be length" not in text and "worst source: model, preference accuracy 0.480" in text
    assert not [tag for tag, _ in page.tags if tag == "svg"], "a single evaluated run has no trend"


def test_two_evaluated_runs_are_a_trend_of_win_rates_and_exchange_rates(store: Store) -> None:
    for day in (30, 31):
        make_run(store, ["human", "model"], run_id=f"demo-202601{day}-120000-ab12")
    page = Page(render_home(store, PAGES, []))
    assert [a["aria-label"] for tag, a in page.tags if tag == "svg"] == ["p0-measures", "p0-rates"]
    assert "win rate at equal length" in page.text and "Golden labels that one label is worth" in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_an_empty_store_and_a_silent_registry_say_so(store: Store) -> None:
    text = text_of(Page(render_home(store, {}, [], missing="the registry of models does not answer: no route")))
    assert "There are no runs yet" in text and "does not answer: no route" in text and "No model is champion" not in text


def test_names_from_data_cannot_become_markup(store: Store) -> None:
    make_run(store, ["human", EVIL], name=EVIL, links={"prefect": "javascript:alert(1)", "mlflow": None, "ray": None})
    page = Page(render_home(store, PAGES, [Registered(EVIL, "1", ("champion",), {"dora.summary": EVIL})], mlflow=PAGES["MLflow"]))
    assert "script" not in {tag for tag, _ in page.tags} and page.text.count(EVIL) >= 3
    assert not [href for href in hrefs(page) if href.startswith("javascript")]


def test_many_projects_are_named_and_few_are_shown(store: Store) -> None:
    for n in range(PROJECTS + 2):
        make_run(store, ["human"], run_id=f"p{n:02}-202601{n + 10}-120000-ab12", project=f"p{n:02}", without=("classify", "evaluate"))
    text = text_of(Page(render_home(store, PAGES, [])))
    assert "Further projects: p01, p00." in text

"""The home page behind its password: it leads to the pages of runs, with their style and figures, and loads nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn

from flows.report.serve import application
from infra.ports import free_port
from infra.settings import Settings
from infra.store.store import Store
from tests.flows.report.runs import make_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

LOGIN = ("ann", "correct-horse-battery")


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Address of a server of two evaluated runs and a failed one."""
    settings = Settings(home=tmp_path / "home", auth=":".join(LOGIN))
    store = Store(settings.store_uri)
    for day in (30, 31):
        make_run(store, ["human", "model"], run_id=f"demo-202601{day}-120000-ab12", name=f"night {day}")
    error = {"message": "stage align: the loss became NaN at step 7", "hint": "lower align.optimization.learning_rate"}
    make_run(store, ["human", "model"], run_id="demo-20260201-120000-cd34", name="night 32", status="failed", error=error, decision=None)
    port = free_port(None, "127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(application(settings), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_from_the_home_page_to_the_cause_of_a_failure_is_one_click(page: Page, url: str) -> None:
    from playwright.sync_api import Error

    with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
        page.goto(url)
    context = page.context.browser.new_context(http_credentials={"username": LOGIN[0], "password": LOGIN[1]})
    tab = context.new_page()
    tab.set_default_timeout(90_000)
    said, requested = list[str](), set[str]()
    tab.on("console", lambda message: said.append(message.text))
    tab.on("request", lambda request: requested.add(request.url))
    tab.goto(url)
    tab.get_by_role("cell", name="stage align: the loss became NaN at step 7").wait_for()
    assert tab.locator("svg").count() == 2, "trends of measures and of exchange rates"
    assert tab.locator(".card").first.evaluate("card => getComputedStyle(card).borderTopStyle") == "solid", "its style is applied"
    tab.get_by_role("link", name="night 32").first.click()
    assert tab.get_by_text("lower align.optimization.learning_rate").first.is_visible()
    contents = tab.get_by_label("Contents")
    contents.get_by_role("link", name="Training", exact=True).click()
    assert tab.locator("#training").evaluate("section => !section.querySelector('details').open"), "training is collapsed"
    widths = tab.locator("figure svg:visible").evaluate_all("all => all.map(svg => Math.round(svg.getBoundingClientRect().width))")
    assert len(widths) > 5 and len(set(widths)) == 1, "figures share one width"
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "tables scroll, the page does not"
    assert said == [] and all(address.startswith(url) for address in requested), (said, requested)
    context.close()

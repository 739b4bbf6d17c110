"""The pages of Prefect and MLflow: start a run from Prefect's form, approve its model, see both in MLflow, read the report.

Screenshots of every step go to build/screenshots (or DORA_SCREENSHOTS).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import Form
from tests.guarantee import nothing_left
from tests.machine import Machine, small_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

Shot = Callable[[str], None]
PROJECT = "seen"


@pytest.fixture(scope="module")
def asked(page: Page, machine: Machine) -> str:
    """URL of a run that was started from the form and waits for approval."""
    given = small_run(machine, PROJECT, epochs=1)
    page.goto(f"{machine.urls['prefect']}/deployments")
    page.get_by_role("link", name="realign", exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    form = Form(page)
    form.type("config_file", given["config_file"])
    form.type("Path", given["data"]["path"])
    form.choose("Objective", "erm")
    form.type("Max Steps", "3")
    form.type("Batch Size", "8")
    form.choose("Mode", "ask")
    for place, override in enumerate(given["overrides"]):
        form.field("overrides").get_by_role("button", name="Add item").click()
        form.field("overrides").locator("textarea").nth(place).fill(override)
    form.submit(leads_to=r"/deployments/deployment/[^/]+$|tab=Runs")
    run = machine.last_run("realign")
    url = f"{machine.urls['prefect']}/runs/flow-run/{run}"
    machine.wait_for_state(run, {"PAUSED"})
    return url


def test_pages_call_the_address_they_were_loaded_from_and_no_other(page: Page, machine: Machine) -> None:
    """Through another name than the server's own, as through a proxy; the newer pages would call a third party at once."""
    requested = set[str]()
    listen = lambda request: requested.add(request.url)  # noqa: E731
    page.on("request", listen)
    here = machine.urls["prefect"].replace("127.0.0.1", "localhost")
    for path in ("/", "/deployments"):
        page.goto(f"{here}{path}")
        page.wait_for_load_state("networkidle")
    page.get_by_text("realign-smoke").first.wait_for()
    page.remove_listener("request", listen)
    assert any(url.startswith(f"{here}/api/") for url in requested)
    assert not [url for url in requested if not url.startswith((f"{here}/", "data:", "blob:"))]


def test_a_bad_value_is_refused_in_the_form(page: Page, machine: Machine, form: Form, shot: Shot) -> None:
    page.goto(f"{machine.urls['prefect']}/deployments")
    shot("1 deployments")
    page.get_by_role("link", name="realign-smoke", exact=True).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    form.type("Epochs", "-1")
    shot("2 form")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("training.epochs").first.wait_for()
    assert "/run?" in page.url, "still in the form"


@pytest.mark.fault(22)
def test_a_run_from_the_form_is_approved_on_its_page(page: Page, asked: str, machine: Machine, form: Form, shot: Shot) -> None:
    nothing_left(machine)  # while a person decides: no process, no slot
    page.goto(asked)
    page.get_by_text("Suspended").first.wait_for()
    shot("3 suspended run")
    page.get_by_role("button", name="Resume").click()
    page.get_by_text("Promote version 1 of").wait_for()
    assert page.get_by_text("lower bound of held-out accuracy").first.is_visible()
    form.choose("Decision", "approve")
    form.type("Reason", "better where it counts")
    form.type("Who", "Ann")
    shot("4 approval form")
    page.get_by_role("button", name="Submit").click()
    machine.wait_for_state(asked.rsplit("/", 1)[1], {"COMPLETED"})
    nothing_left(machine)
    page.goto(asked)
    page.get_by_text("Completed").first.wait_for()
    page.wait_for_load_state("networkidle")
    shot("5 completed run")


def test_the_summary_says_who_decided_and_links_to_mlflow(page: Page, asked: str, machine: Machine, shot: Shot) -> None:
    artifacts = machine.prefect("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [asked.rsplit("/", 1)[1]]}}})
    [summary] = [a for a in artifacts if a["type"] == "markdown" and "approved by Ann" in a["data"]]
    page.goto(f"{machine.urls['prefect']}/artifacts/artifact/{summary['id']}")
    page.get_by_text("approved by Ann: better where it counts").wait_for()
    shot("6 summary")
    with page.expect_popup() as opened:
        page.locator(f"a[href^='{machine.urls['mlflow']}']").first.click()
    opened.value.get_by_role("tab", name="Model metrics").wait_for()
    opened.value.close()


def test_mlflow_shows_metrics_figures_and_the_champion(page: Page, asked: str, machine: Machine, shot: Shot) -> None:
    mlflow, pages = machine.urls["mlflow"], "?workflowType=machine_learning"
    runs = {run["info"]["run_name"].split(" · ")[0]: run["info"] for run in machine.mlflow_runs(PROJECT)}
    whole, evaluate = (f"{mlflow}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}" for run in (runs[PROJECT], runs["evaluate"]))
    page.goto(f"{whole}{pages}")
    page.get_by_text("accuracy_all").first.wait_for()
    shot("7 MLflow run")
    page.goto(f"{evaluate}/artifacts{pages}")
    page.get_by_text("figures").first.click()
    page.get_by_text(".png").first.click()
    page.locator("img[src^='blob:'], img[src*='artifact']").first.wait_for()
    shot("8 MLflow figure")
    page.goto(f"{mlflow}/#/models/{PROJECT}/versions/1{pages}")
    page.get_by_text("champion").first.wait_for()
    shot("9 MLflow champion")


def test_the_report_opens_from_a_file(page: Page, asked: str, machine: Machine, shot: Shot, tmp_path: Path) -> None:
    report = machine.dora("report", "latest", "-o", str(tmp_path / "report.html"))["report"]
    page.goto(Path(report).as_uri())
    page.get_by_role("heading", name=re.compile(PROJECT)).first.wait_for()
    assert page.get_by_text("promoted").first.is_visible()
    assert not page.locator("img, script, link").evaluate_all("all => all.map(x => x.src || x.href).filter(x => x.startsWith('http'))")
    shot("10 report")

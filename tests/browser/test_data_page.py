"""The page of `dora data preview -o` in a browser: its search filters the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dora_core.config.data import DataConfig
from dora_core.data.preview import preview_data
from flows.report.data_preview import render_page

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def test_search_and_filters(page: Page, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"question {i}", "responses": [f"good {i}", "bad"], "rewards": [2, 1], "sources": ["human", "lm" if i % 2 else "other"]}
        for i in range(250)
    ]
    file = tmp_path / "prefs.jsonl"
    file.write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
        + json.dumps(rows[0] | {"responses": ["one"], "rewards": [1], "sources": ["lm"]})
        + "\n"
    )
    preview, records, bad = preview_data(DataConfig.model_validate({"train": [{"path": str(file)}]}), keep=1000)
    factors = {(record.record_id, 0): record.row / 100 for record in records}
    (tmp_path / "data.html").write_text(render_page(preview, records, bad, title="prefs", factors=factors, run="run-1"))

    page.goto((tmp_path / "data.html").as_uri())
    drawn, found = page.locator("#records tbody tr"), page.locator("#found")
    assert drawn.count() == 100 and found.inner_text() == "251 of 251 rows match, 100 shown"
    page.locator("#more").click()
    assert drawn.count() == 200
    page.fill("#search", '"good 42"')
    assert drawn.count() == 1 and "good 42" in drawn.first.inner_text() and "h 0.42" in drawn.first.inner_text()
    page.fill("#search", "")
    page.select_option("#source", "lm")
    assert found.inner_text().startswith("125 of 251")
    page.fill("#low", "2.4")
    assert drawn.count() == 5
    page.fill("#low", "")
    page.select_option("#source", "")
    page.select_option("#kind", "quarantine")
    assert drawn.count() == 1 and "too_few_responses" in drawn.first.inner_text()

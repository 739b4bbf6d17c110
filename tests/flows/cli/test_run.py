"""Plans on the terminal and as JSON, with the data they read; and the page of a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dora_core.errors import DataError
from flows.cli.run import DRY_ROWS, run_file, write_report
from infra.store.store import Store
from tests.flows.report.runs import make_run


def show(config_file: Path, *, as_json: bool, until: str = "promote", overrides: list[str] | None = None) -> None:
    run_file(config_file, overrides or [], until, True, as_json, False)  # type: ignore[arg-type]


def test_a_dry_run_says_what_runs_and_reads(config_file: Path, own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(config_file, as_json=False)
    said = capsys.readouterr().out
    assert "data.train[0]" in said and "align" in said and "first time" in said
    assert not (own_home / "store").exists() or not list((own_home / "store").glob("*/*/result.json")), "nothing is written"


def test_the_document_has_the_plan_and_the_data_without_texts(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(config_file, as_json=True, until="calibrate")
    found = json.loads(capsys.readouterr().out)
    assert [stage["label"] for stage in found["stages"]][-1] == "calibrate"
    (item,) = found["data"]["inputs"]
    assert item["rows"] == 40 <= DRY_ROWS and "shown" not in item and found["data"]["refusals"] == []


def test_data_that_a_run_would_refuse_is_said(config_file: Path) -> None:
    with pytest.raises(DataError, match=r"no source matches data\.golden_sources"):
        show(config_file, as_json=False, overrides=["data.golden_sources=[unheard]"])


def test_the_page_of_a_run_is_written_where_it_is_wanted(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    make_run(store, ["human", "gpt-4"], run_id="demo-1")
    page = write_report(store, "demo-1", tmp_path / "deep" / "r.html")
    assert page == (tmp_path / "deep" / "r.html").resolve() and "demo-1" in page.read_text()

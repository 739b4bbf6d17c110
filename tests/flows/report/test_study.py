"""The page of a study."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dora_core.evaluation.study_statistics import FACTOR_MEASURES, TABLES
from flows.report import html
from flows.report.find import ReportError
from flows.report.study import render_study
from tests.flows.report.runs import EVIL
from tests.flows.report.studies import make_facts, saved


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if "id" in given:
            self.ids.append(given["id"] or "")
        self.loaded += [given[name] or "" for name in ("src", "srcset") if name in given] + ([tag] if tag in ("script", "link") else [])


def test_the_page_has_every_table_and_loads_nothing(tmp_path: Path) -> None:
    page = render_study(*saved(tmp_path, make_facts()))
    reader = Reader()
    reader.feed(page)
    assert set(TABLES) | {"findings", "settings"} <= set(reader.ids) and len(set(reader.ids)) == len(reader.ids)
    assert reader.loaded == [] and not re.search(r"url\((?!#)", page)
    assert page.count("<svg") == len(TABLES) + 1  # two for calibration
    assert "Round 0 is the alignment on the given data" in page and "(i) A golden reference" in page
    assert all(measure.title in page for measure in FACTOR_MEASURES.values())
    assert "0.740" in page and "0.715 … 0.765" in page and "0.705 … 0.775" in page  # value, bootstrap and t
    assert "javascript:" not in page and "http://127.0.0.1:5000" in page
    assert "learning_rate: 0.001" in page


def test_names_are_escaped(tmp_path: Path) -> None:
    page = render_study(*saved(tmp_path, make_facts(name=EVIL), project=EVIL))
    assert "<script" not in page and "&lt;script&gt;" in page


def test_one_seed_has_no_t_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "figures_for", lambda result: {})  # words alone, which takes no time
    page = render_study(*saved(tmp_path, make_facts(seeds=1)))
    assert "× 1 seed." in page and "None" not in page


def test_a_study_that_has_not_finished_says_so(tmp_path: Path) -> None:
    page = render_study(*saved(tmp_path, None, status="failed"))
    assert "There are no tables yet: the run is failed." in page


def test_other_runs_are_refused(tmp_path: Path) -> None:
    store, run_id = saved(tmp_path, None)
    run = store.read_json(f"runs/{run_id}/run.json")
    store.write_json(f"runs/{run_id}/run.json", run | {"stages": run["stages"][:1]})
    with pytest.raises(ReportError, match="is not a study"):
        render_study(store, run_id)
    with pytest.raises(ReportError, match="no manifest"):
        render_study(store, "nothing")

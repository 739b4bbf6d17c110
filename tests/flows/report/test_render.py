"""The page of any run."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.report import page, study, tune
from flows.report.find import ReportError
from flows.report.render import page_of
from infra.store.store import Store
from tests.flows.report.runs import make_run


@pytest.mark.parametrize(("flow", "expected"), [("study", "a study"), ("tune", "a search"), ("realign", "a run, 3"), ("", "a run, 3")])
def test_each_flow_has_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flow: str, expected: str) -> None:
    monkeypatch.setattr(study, "render_study", lambda store, run_id: "a study")
    monkeypatch.setattr(tune, "render_tune", lambda store, run_id: "a search")
    monkeypatch.setattr(page, "render", lambda store, run_id, prompts: f"a run, {prompts}")
    store = Store(str(tmp_path))
    assert page_of(store, make_run(store, ["human"], flow=flow), 3) == expected


def test_a_run_without_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="has no manifest"):
        page_of(Store(str(tmp_path)), "demo-1")

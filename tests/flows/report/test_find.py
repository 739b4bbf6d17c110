"""The run that a report is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.report.find import ReportError, find_run, manifest_of
from infra.store.store import Store
from tests.flows.report.runs import make_run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_find_run(store: Store) -> None:
    make_run(store, ["human"], run_id="demo-20260101-000000-aaaa", started=1.0)
    make_run(store, ["human"], run_id="demo-20260102-000000-bbbb", started=3.0)
    make_run(store, ["human"], run_id="other-20260101-000000-cccc", started=2.0)
    assert find_run(store, "latest") == "demo-20260102-000000-bbbb"
    assert find_run(store, "other") == "other-20260101-000000-cccc"
    assert find_run(store, "demo-20260101") == "demo-20260101-000000-aaaa"
    assert find_run(store, f"{store.uri}/runs/demo-20260101-000000-aaaa/run.json") == "demo-20260101-000000-aaaa"
    assert find_run(store, f"{store.uri}/runs/demo-20260101-000000-aaaa/") == "demo-20260101-000000-aaaa"
    with pytest.raises(ReportError, match="beginning of 2 runs") as caught:
        find_run(store, "demo")
    assert "demo-20260102-000000-bbbb" in caught.value.hint
    with pytest.raises(ReportError, match="no run 'demo-20260103-000000-bbbb'") as caught:
        find_run(store, "demo-20260103-000000-bbbb")
    assert "did you mean 'demo-20260102-000000-bbbb'" in caught.value.hint


def test_find_run_in_an_empty_store(store: Store) -> None:
    with pytest.raises(ReportError, match="there are no runs"):
        find_run(store, "latest")


def test_a_run_without_a_manifest_is_refused(store: Store) -> None:
    with pytest.raises(ReportError, match="run 'nothing' has no manifest"):
        manifest_of(store, "nothing")

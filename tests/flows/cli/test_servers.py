"""`dora up` and `dora down`: options that are checked before any server starts. Servers: ``tests/infra/test_services.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.cli.invoked import assert_help, assert_wrong, document, invoke


def test_help_has_an_example_and_the_options() -> None:
    assert_help("up", "--postgres", "--artifacts", "--host", "--json")
    assert_help("down", "--json")


def test_nothing_runs_and_nothing_is_stopped(own_home: Path) -> None:
    assert invoke("down").out.strip() == "nothing was running"
    assert document("down") == {"stopped": []}


def test_a_network_address_needs_a_password(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DORA_AUTH", raising=False)
    assert_wrong("up", "--host", "0.0.0.0", says="DORA_AUTH")
    assert document("down") == {"stopped": []}, "nothing was started"


@pytest.mark.parametrize("url", ["mysql://db/x", "db.internal"])
def test_another_database_is_refused(url: str, own_home: Path) -> None:
    assert_wrong("up", "--postgres", url, says="postgres")

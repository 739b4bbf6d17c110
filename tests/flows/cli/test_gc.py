"""`dora gc`: options, and the report about an empty store and about one unneeded folder. Its rules: ``tests/flows/upkeep/test_gc.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.store.store import Store
from tests.flows.cli.invoked import assert_help, assert_wrong, document, invoke

DIGEST = "a" * 64


@pytest.fixture
def unneeded(own_home: Path) -> Path:
    """A finished stage that no run has planned."""
    store = Store(str(own_home / "store"))
    folder = store.folder("ingest", DIGEST)
    (folder.path / "table.bin").write_bytes(b"x" * 2048)
    result = {"stage": "ingest", "digest": DIGEST, "spec": {}, "inputs": {}, "rows": 1, "metrics": {}, "facts": {}, "seconds": 1.0}
    store.mark_done(folder, result)
    return folder.path


def test_help_has_an_example_and_the_options() -> None:
    assert_help("gc", "--delete", "--older-than", "--keep-runs", "--unregistered")


@pytest.mark.parametrize("age", ["soon", "7 weeks", "-1d", ""])
def test_a_wrong_duration_is_refused_with_examples(age: str, own_home: Path) -> None:
    hint = "give a number and one of s, m, h, d, w: 90m, 12h, 7d"
    assert_wrong("gc", f"--older-than={age}", says=f"{age!r} is not a valid duration hint: {hint}")


def test_at_least_one_run_stays() -> None:
    assert_wrong("gc", "--keep-runs", "0", says="Input should be greater than or equal to 1")


def test_without_delete_only_the_report(unneeded: Path) -> None:
    done = invoke("gc", "--older-than", "0m", "--verbose")
    assert done.code == 0 and "would go" in done.out and f"ingest/{DIGEST[:12]}" in done.out
    assert (unneeded / "table.bin").exists()


def test_with_delete_the_folder_is_gone(unneeded: Path) -> None:
    found = document("gc", "--older-than", "0m", "--delete")
    assert found["stages"]["ingest"]["removed"] == 1 and not (unneeded / "table.bin").exists()


def test_what_is_younger_stays(unneeded: Path) -> None:
    found = document("gc", "--delete")
    assert found["stages"]["ingest"]["folders"] == 1 and (unneeded / "table.bin").exists()

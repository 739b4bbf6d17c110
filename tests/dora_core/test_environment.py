"""A variable that is set to nothing is not set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dora_core.environment import set_default, variable


@pytest.mark.parametrize(("value", "read"), [("a", "a"), (" a ", " a "), ("", None), ("  ", None), (None, None)])
def test_empty_is_unset(value: str | None, read: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DORA_X", raising=False)
    if value is not None:
        monkeypatch.setenv("DORA_X", value)
    assert variable("DORA_X") == read
    assert variable("DORA_X", {} if value is None else {"DORA_X": value}) == read


def test_a_default_replaces_an_empty_value_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, read in (("", "b"), ("a", "a")):
        monkeypatch.setenv("DORA_X", value)
        set_default("DORA_X", "b")
        assert variable("DORA_X") == read


def test_every_variable_is_read_through_one_function() -> None:
    """`os.environ.get`, `os.getenv` and `setdefault` take an empty value for a value."""
    root = Path(__file__).parents[2]
    found = {
        path.relative_to(root).as_posix()
        for package in ("dora_core", "tasks", "flows", "infra")
        for path in (root / package).rglob("*.py")
        if re.search(r"os\.environ\.(get|setdefault)\(|os\.getenv\(", path.read_text(encoding="utf-8"))
    }
    assert found == set()


def test_files_are_text_in_utf8_whatever_the_locale_is() -> None:
    """Without an encoding Python takes the locale's: with LC_ALL=C a report would fail after a good run."""
    root = Path(__file__).parents[2]
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for package in ("dora_core", "tasks", "flows", "infra")
        for path in (root / package).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\.read_text\(\)|\bopen\((\w+, )?(\"[rwax]\+?\")?\)", line) and ".open()" not in line
    ]
    assert found == []

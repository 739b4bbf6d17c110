"""A variable that is set to nothing is not set."""

from __future__ import annotations

import pytest

from dora_core.environment import variable


@pytest.mark.parametrize(("value", "read"), [("a", "a"), (" a ", " a "), ("", None), ("  ", None), (None, None)])
def test_empty_is_unset(value: str | None, read: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DORA_X", raising=False)
    if value is not None:
        monkeypatch.setenv("DORA_X", value)
    assert variable("DORA_X") == read
    assert variable("DORA_X", {} if value is None else {"DORA_X": value}) == read

"""Peak memory of a process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.runtime import memory
from tasks.runtime.memory import peak_memory, restart_peak

MB = 1_000_000


def test_the_peak_is_that_since_the_restart() -> None:
    restart_peak()
    before = peak_memory()
    assert before is not None
    large = np.ones(30 * MB)  # 240 MB of float64
    del large
    peak = peak_memory()
    assert peak is not None and 200 * MB < peak - before < 400 * MB
    restart_peak()
    after = peak_memory()
    assert after is not None and after < peak - 100 * MB


def test_a_system_that_does_not_tell_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "missing")
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "missing" / "either")
    restart_peak()
    assert peak_memory() is None

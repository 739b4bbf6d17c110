"""Output that nothing takes must not end a command, nor change its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SAY = (
    "from flows.cli.streams import settle_streams; settle_streams(); import sys; from rich.console import Console; "
    "print('done \\u2192 \\u6a21\\u578b'); Console().print('\\u03b2'); print('x', flush=True); print('\\u2192', file=sys.stderr)"
)


def run(shell: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = os.environ | {"SAY": SAY, "PYTHON": sys.executable} | environment
    return subprocess.run(["bash", "-c", shell], env=env, capture_output=True, check=False)


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}])
def test_characters_that_the_encoding_lacks_are_replaced(environment: dict[str, str]) -> None:
    done = run('exec "$PYTHON" -c "$SAY"', **environment)
    assert done.returncode == 0 and done.stdout.startswith(b"done ? ??") and b"\\u2192" in done.stderr


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        ('"$PYTHON" -c "$SAY" >&-', b""),
        ('"$PYTHON" -c "$SAY" 2>&-', b"done"),
        ('"$PYTHON" -c "$SAY" <&- >&- 2>&-', b""),
        ('"$PYTHON" -c "$SAY" | true; exit ${PIPESTATUS[0]}', b""),
    ],
)
def test_closed_streams_and_broken_pipes_take_nothing_and_break_nothing(shell: str, said: bytes) -> None:
    done = run(shell)
    assert done.returncode == 0 and b"Traceback" not in done.stderr and said in done.stdout


def test_a_full_disk_behind_stdout_is_reported_once() -> None:
    done = run('"$PYTHON" -c "$SAY" > /dev/full')
    assert done.returncode == 0 and done.stderr.decode().count("output is lost: No space left on device") == 1


def test_json_is_escaped_not_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flows.cli.output import json_text

    value = {"source": "模型"}
    for encoding in ("ascii", "utf-8"):
        with (tmp_path / encoding).open("w", encoding=encoding) as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            text = json_text(value)
            assert json.loads(text) == value and ("模型" in text) is (encoding == "utf-8")

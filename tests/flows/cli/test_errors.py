"""How a command ends: exit codes, panels, tracebacks."""

from __future__ import annotations

import pytest

from dora_core.errors import ConfigError, DataError, ServiceError, StageFailed
from flows.cli.errors import explained


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a", hint="b"), 2),
        (DataError("a"), 2),
        (StageFailed("a"), 1),
        (ServiceError("a"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    with pytest.raises(typer.Exit) as caught, explained():
        raise error
    assert caught.value.exit_code == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") >= 1


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), explained():
        _ = 1 / 0

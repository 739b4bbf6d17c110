"""Ends a command: turns exceptions into a panel and an exit code."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from dora_core.errors import DoraError, RunStopped, ServiceError, StageFailed, StoreError, TrainingError

FAILURES = (StageFailed, RunStopped, ServiceError, StoreError, TrainingError)
"""Failures of a stage or server: exit code 1. Every other DoraError is a mistake of the user: 2."""
INTERRUPTED = "nothing is running; run the same command to resume"


@contextmanager
def explained(as_json: bool = False) -> Iterator[None]:
    """Run a command's body. A :class:`DoraError` becomes a panel; any other exception is a bug and keeps its traceback."""
    with _one_interrupt():
        try:
            yield
        except DoraError as error:
            _panel(error.message, error.hint)
            _json(as_json, error.to_json())
            raise typer.Exit(1 if isinstance(error, FAILURES) else 2) from None
        except KeyboardInterrupt:
            _panel(INTERRUPTED, "", style="yellow", title="stopped")
            _json(as_json, {"type": "Interrupted", "message": INTERRUPTED, "hint": "", "retryable": True})
            raise typer.Exit(130) from None


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM, or a closed terminal) stops the work in order; further ones must not interrupt the stopping."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            typer.echo("stopping already: Ray jobs get a few seconds for their checkpoints", err=True)
            return
        asked = True
        raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _panel(message: str, hint: str, *, style: str = "red", title: str = "error") -> None:
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.text import Text

    lines = [Text(message)] + ([Text(f"\n{hint}", style="dim")] if hint else [])
    console = Console(stderr=True)
    if console.is_terminal:
        console.print(Panel(Group(*lines), title=title, title_align="left", border_style=style))
    else:  # no box and no wrapping in logs and pipes
        typer.echo(f"{title}: {message}" + (f"\nhint: {hint}" if hint else ""), err=True)


def _json(as_json: bool, error: dict[str, object]) -> None:
    if as_json:
        typer.echo(json.dumps({"error": error}, indent=1))

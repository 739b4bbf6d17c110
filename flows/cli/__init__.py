"""``dora``: the command line. Commands are thin; all imports are inside their functions, so that ``--help`` answers at once.

**A new command** is a file here with an ``@app.command`` function, and a line in :data:`NOUNS`.
"""

from __future__ import annotations

from importlib import import_module

from flows.cli.app import app

NOUNS = (
    "demo",
    "init",
    "data",
    "realign",
    "evaluate",
    "generate",
    "judge",
    "self_train",
    "tune",
    "study",
    "servers",
    "deploy",
    "reap",
    "gc",
    "doctor",
    "report",
    "runs",
    "model",
    "registered",
)
"""Files whose commands `dora --help` lists, in this order."""

for noun in NOUNS:
    import_module(f"{__name__}.{noun}")


def main() -> None:
    app()


__all__ = ["NOUNS", "app", "main"]

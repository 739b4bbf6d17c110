"""``dora``: the command line. Commands are thin; all imports are inside their functions, so that ``--help`` answers at once.

**A new command** is a file here with an ``@app.command`` function, and a line in :data:`NOUNS`.
"""

from __future__ import annotations

import os
from importlib import import_module

from flows.cli.app import app
from flows.cli.streams import settle_streams
from infra.child_environment import without_proxy

NOUNS = (
    "demo",
    "init",
    "data",
    "label",
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
    settle_streams()
    os.environ |= without_proxy(os.environ)  # before any client is made
    app()


__all__ = ["NOUNS", "app", "main"]

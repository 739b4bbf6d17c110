"""``dora``: the command line. Commands are thin; every import of theirs is inside them, so that ``--help`` answers at once."""

from flows.cli.app import app, main

__all__ = ["app", "main"]

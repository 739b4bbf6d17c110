"""The command ``dora``, to which the files of this folder add theirs (``flows/cli/__init__.py`` lists them).

Exit codes: 0 success · 1 a stage or server failed, or a guard rail stopped the run · 2 the configuration, the data or the command is
wrong · 130 stopped by Ctrl-C. Errors go to stderr as one panel with the remedy; with ``--json`` stdout carries exactly one JSON document.
"""

from __future__ import annotations

import typer

app = typer.Typer(
    name="dora",
    help="Distribution-aware robust alignment as a recurring pipeline. Start with: [bold]dora demo[/]",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

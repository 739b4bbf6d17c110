"""Shared by all benchmarks: alternating repetitions, one table, one command line.

Contestants alternate, so that a slower machine slows all of them; the fastest repetition of each counts.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One line of a table. ``target`` is empty for a figure without one; ``limit`` is the physical bound and the distance from it."""

    what: str
    figure: str
    target: str = ""
    met: bool | None = None
    limit: str = ""


def best_of(contestants: dict[str, Callable[[], object]], repetitions: int = 3) -> dict[str, float]:
    """Fastest wall time of each contestant, seconds, after one unmeasured turn each."""
    best = dict.fromkeys(contestants, float("inf"))
    for turn in range(repetitions + 1):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            if turn:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def hardware() -> str:
    """The machine in words: cores, processor, accelerator, torch."""
    import torch

    model = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{len(os.sched_getaffinity(0))} cores of {model}{gpu}, torch {torch.__version__}, Python {platform.python_version()}"


def report(title: str, rows: list[Row], save: Path | None = None) -> None:
    """Print the table; with ``save`` append it to a Markdown file too."""
    head = f"{datetime.date.today().isoformat()} · {hardware()}"
    columns = ("what", "figure", "target", "met", "limit")
    cells = [(row.what, row.figure, row.target, {True: "yes", False: "NO", None: ""}[row.met], row.limit) for row in rows]
    table = Table(title=f"{title}\n{head}", title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for line in cells:
        table.add_row(*line)
    Console(width=int(os.environ.get("COLUMNS", 160))).print(table)
    if save is not None:
        lines = [f"### {title}", "", f"{head} · `{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`", ""]
        lines += ["| " + " | ".join(line) + " |" for line in (columns, ("---",) * len(columns), *cells)]
        with save.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n\n")


def argument_parser(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, help="append the table to this Markdown file")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    return parser


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []

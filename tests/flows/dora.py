"""``dora`` in a process of its own, for tests of real flows."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from infra.store.store import Store
from tests.machine import environment_of, processes_of


class Dora:
    """Starts ``dora`` with a home of its own, and knows its processes by that home."""

    def __init__(self, folder: Path):
        self.folder, self.home = folder, folder / "home"
        self.environment = environment_of(self.home)

    def use_databases(self, *, mlflow: Path, prefect: Path) -> None:
        """Copy databases without any run into the home, whose first command then has none to make."""
        (self.home / "prefect").mkdir(parents=True)
        shutil.copy(mlflow, self.home / "mlflow.db")
        shutil.copy(prefect, self.home / "prefect" / "prefect.db")

    def start(self, command: str, config: str, *arguments: str) -> subprocess.Popen[str]:
        """``dora <command> -c <file with config> <arguments>``."""
        (self.folder / "c.yaml").write_text(config)
        line = [sys.executable, "-c", "from flows.cli import main; main()", command, "-c", str(self.folder / "c.yaml"), *arguments]
        # A group of its own: a signal to it reaches what a Ctrl-C in a terminal reaches.
        return subprocess.Popen(
            line, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(self, command: str, config: str, *arguments: str) -> dict[str, Any]:
        """Run to success; returns the JSON document."""
        process = self.start(command, config, "--json", *arguments)
        output, log = process.communicate(timeout=500)
        assert process.returncode == 0, log
        return json.loads(output)

    def processes(self) -> list[psutil.Process]:
        return processes_of(self.home)

    def store(self) -> Store:
        return Store(str(self.home / "store"))

    def manifests(self) -> list[dict[str, Any]]:
        """Those that are written; a run's folder is there a moment before."""
        return list(filter(None, (self.store().read_json(f"runs/{run}/run.json") for run in self.store().list("runs"))))

    def mlflow(self, query: str) -> list[tuple[Any, ...]]:
        return _rows(self.home / "mlflow.db", query)

    def prefect(self, query: str) -> list[tuple[Any, ...]]:
        return _rows(self.home / "prefect" / "prefect.db", query)

    def mlflow_states(self) -> list[str]:
        return [row[0] for row in self.mlflow("select status from runs")]


def _rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{text!r} never came: {process.stderr.read() if process.stderr else ''}")

"""Realignments in a row, each with 2 % new data: growth of time, memory, files and processes.

Every run is `dora realign` in its own process, as a schedule starts it on a machine without servers, with its own Prefect API, Ray head
and MLflow's database, which must all have ended afterwards. `dora gc --delete` runs in between, every --collect runs. Measured
after every run: seconds, processor time (which other work on the machine does not change), the most memory that its processes held at a
time (PSS) and their file descriptors, processes and files left behind, the store. The slope of each over the runs is given with its 95 %
interval; "flat" means that the interval does not exclude 0, or that all runs together grew by less than 5 %. Nothing is asserted: read the
verdicts.

The data grows, so a run takes longer. The cost of the *history* is measured against a control: every --control runs, the same run is made
in a home with the run before it alone.

    python -m tests.benchmarks.bench_soak [--runs 30] [--minutes M] [--collect 5] [--control 6] [--save FILE]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from dora_core.config.method import TestbedConfig
from dora_core.testbed.mixture import Testbed
from infra.settings import Settings
from tests.benchmarks.harness import Row, argument_parser, report
from tests.machine import processes_of

PROMPTS, NEW = 100, 2
CONFIDENCE, NEGLIGIBLE = 0.95, 0.05
CONFIG = {
    "project": "soak",
    "text": {"max_prompt_tokens": 32, "max_response_tokens": 64},
    "policy": {"hidden_size": 32, "heads": 2, "layers": 1, "vocab_size": 320},
    "classifier": {"encoder": {"hidden_size": 32, "layers": 1, "heads": 2, "vocab_size": 400}, "epochs": 1, "folds": 2},
    "sft": {"optimization": {"max_steps": 5, "batch_size": 8}},
    "align": {"optimization": {"max_steps": 5, "batch_size": 8}},
    "evaluate": {"kl_prompts": 2, "kl_max_new_tokens": 8, "bootstrap_samples": 100, "twins": []},
    "compare": None,
    "promotion": {"mode": "never"},
    "execution": {"default": {"workers": 0}},
}
MB = 1e6


@dataclass
class Peak:
    """Peak memory of a process and its descendants, and their processor time; sampled every half second."""

    bytes: int = 0
    processes: int = 0
    descriptors: int = 0
    _cpu: dict[int, float] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)

    def watch(self, pid: int) -> None:
        while not self._ended.wait(0.5):
            found = [0, 0, 0]
            for process in family(pid):
                with suppress(psutil.Error):
                    self._cpu[process.pid] = sum(process.cpu_times()[:2])
                    found = [total + n for total, n in zip(found, (process.memory_full_info().pss, 1, process.num_fds()), strict=True)]
            self.bytes, self.processes, self.descriptors = map(max, (self.bytes, self.processes, self.descriptors), found)

    @property
    def cpu_seconds(self) -> float:
        return sum(self._cpu.values())

    def end(self) -> None:
        self._ended.set()


def family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [process := psutil.Process(pid), *process.children(recursive=True)]
    return []


@dataclass(frozen=True)
class Measured:
    """After one run."""

    seconds: float
    cpu_seconds: float
    memory: int
    descriptors: int
    left_processes: int
    left_files: int
    store: int
    store_uncollected: int
    databases: int
    shown: int
    ran: int


class Soak:
    """A separate home, below a folder that is also the temporary folder of all its processes."""

    def __init__(self, folder: Path):
        self.home, self.data, self.temporary = folder / "home", folder / "data", folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("DORA_", "PREFECT_", "MLFLOW_", "RAY_"))}
        self.environment |= {"DORA_HOME": str(self.home), "TMPDIR": str(self.temporary)}
        self.config = folder / "c.yaml"
        self.config.write_text(yaml.safe_dump(CONFIG | {"data": {"train": [{"path": str(self.data)}]}}))
        self.freed = 0
        self.unregistered: list[float] = []

    def arrive(self, week: int) -> None:
        """Append new data."""
        testbed = Testbed(TestbedConfig(prompts=NEW if week else PROMPTS, responses_per_prompt=3), round=week)
        testbed.write(self.data / f"{week:03d}.parquet")

    def dora(self, *arguments: str, peak: Peak | None = None) -> dict[str, Any]:
        command = [sys.executable, "-c", "from flows.cli import main; main()", *arguments, "--json"]
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        watcher = threading.Thread(target=peak.watch, args=(process.pid,)) if peak else None
        if watcher:
            watcher.start()
        try:
            output, log = process.communicate()
        finally:
            if peak and watcher:
                peak.end()
                watcher.join()
        if process.returncode != 0:
            raise SystemExit(f"dora {' '.join(arguments)} failed:\n{log[-4000:]}")
        return json.loads(output)

    def realign(self) -> Measured:
        peak, started = Peak(), time.monotonic()
        manifest = self.dora("realign", "-c", str(self.config), peak=peak)
        seconds = time.monotonic() - started
        left = self.processes()
        store = size(self.home / "store")
        return Measured(
            seconds=seconds,
            cpu_seconds=peak.cpu_seconds,
            memory=peak.bytes,
            descriptors=peak.descriptors,
            left_processes=len(left),
            left_files=sum(1 for place in (self.temporary, self.home / "ray", Settings(home=self.home).outbox) for _ in place.rglob("*")),
            store=store,
            store_uncollected=store + self.freed,
            databases=size(self.home / "prefect") + (self.home / "mlflow.db").stat().st_size,
            shown=sum(size(self.home / name) for name in ("mlartifacts", "reports", "logs")),
            ran=sum(stage["state"] == "ran" for stage in manifest["stages"]),
        )

    def collect(self) -> float:
        """Run `dora gc`; returns its seconds. ``unregistered`` gets the size left, without data that only registered models need, in MB."""
        started, store = time.monotonic(), self.home / "store"
        collected = self.dora("gc", "--delete", "--older-than", "0s", "--keep-runs", "1")
        seconds = time.monotonic() - started
        self.freed += collected["freed_bytes"]
        registered = [place for place, why in collected["kept"].items() if why.startswith("registered") or why == "decisions"]
        self.unregistered.append((size(store) - sum(size(store / place) for place in registered)) / MB)
        return seconds

    def processes(self) -> list[psutil.Process]:
        """List all processes of this home."""
        return processes_of(self.home)


def without_history(folder: Path, weeks: int) -> Measured:
    """Make the last of so many weeks' runs in a home with only the run before it."""
    control = Soak(folder)
    for week in range(weeks):
        control.arrive(week)
    control.realign()
    control.arrive(weeks)
    return control.realign()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


def size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in files(folder))


def trend(what: str, values: Sequence[float], unit: str, *, digits: int = 1, per: str = "run") -> Row:
    """Least squares over the runs: the figure is first → last, the limit the slope with its interval."""
    from scipy import stats

    if values and min(values) == max(values):
        return Row(what, f"{values[0]:,.{digits}f} {unit}", "flat", True, "the same after every run")
    if len(values) < 3:
        return Row(what, " → ".join(f"{value:,.{digits}f}" for value in values), "flat", None, f"{unit}; too few points for an interval")
    fitted = stats.linregress(range(len(values)), values)
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 2)) * fitted.stderr
    low, high = fitted.slope - margin, fitted.slope + margin
    mean = sum(values) / len(values)
    grown = fitted.slope * (len(values) - 1)
    flat = low <= 0 or grown < NEGLIGIBLE * mean
    share = f", {grown / mean:+.0%} over all runs" if mean else ""
    return Row(
        what,
        f"{values[0]:,.{digits}f} → {values[-1]:,.{digits}f} {unit}",
        "flat",
        bool(flat),
        f"slope {fitted.slope:+.{digits + 1}f} [{low:+.{digits + 1}f}, {high:+.{digits + 1}f}] {unit} a {per}{share}",
    )


def compared(what: str, pairs: dict[int, tuple[float, float]]) -> Row:
    """The figure is a run's with its history ÷ without, on average; flat as in :func:`trend`."""
    from scipy import stats

    ratios = [with_history / without for with_history, without in pairs.values()]
    name = f"{what}, with the history ÷ without"
    if len(ratios) < 2:
        return Row(name, " ".join(f"{ratio:.2f}" for ratio in ratios), "flat", None, "too few points for an interval")
    mean = sum(ratios) / len(ratios)
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(ratios) - 1) * stats.sem(ratios))
    after = ", ".join(f"{week}: {ratio:.2f}" for week, ratio in zip(pairs, ratios, strict=True))
    flat = mean - margin <= 1 or mean < 1 + NEGLIGIBLE
    return Row(name, f"{mean:.2f} ×", "flat", bool(flat), f"[{mean - margin:.2f}, {mean + margin:.2f}]; after runs {after}")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further run after so long")
    parser.add_argument("--collect", type=int, default=5, help="collect garbage after so many runs each")
    parser.add_argument("--control", type=int, default=6, help="make the same run without a history after so many runs each")
    options = parser.parse_args()
    measured, collections, controls = list[Measured](), list[float](), dict[int, Measured]()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Path(folder))
        began = time.monotonic()
        for week in range(options.runs + 1):  # the first run, which computes everything, is not counted
            if time.monotonic() - began > 60 * options.minutes:
                break
            soak.arrive(week)
            measured.append(soak.realign())
            print(f"run {week}: {measured[-1]}", flush=True)
            if week % options.collect == 0:
                collections.append(soak.collect())
            if week and week % options.control == 0:
                with tempfile.TemporaryDirectory(prefix="soak-control-") as other:
                    controls[week] = without_history(Path(other) / "control", week)
        total = time.monotonic() - began
        first, counted = measured[0], measured[1:]
        collected = counted[options.collect :: options.collect]  # the run after each collection
    rows = [
        Row(
            f"{len(counted)} realignments, {NEW} % new data each",
            f"{total:.0f} s in all",
            limit=f"{PROMPTS} records, then {NEW} more a run",
        ),
        trend("seconds a run, of growing data", [m.seconds for m in counted], "s"),
        trend("processor time a run, of growing data", [m.cpu_seconds for m in counted], "s"),
        compared("seconds", {week: (measured[week].seconds, control.seconds) for week, control in controls.items()}),
        compared("processor time", {week: (measured[week].cpu_seconds, control.cpu_seconds) for week, control in controls.items()}),
        trend("memory of all its processes at the peak", [m.memory / MB for m in counted], "MB PSS", digits=0),
        trend("file descriptors at the peak", [m.descriptors for m in counted], "", digits=0),
        trend("processes left behind", [m.left_processes for m in counted], "", digits=0),
        trend("files and folders left in temporary folders, Ray's and the outbox", [m.left_files for m in counted], "", digits=0),
        trend("databases of Prefect and MLflow", [m.databases / MB for m in counted], "MB"),
        trend("figures, reports, logs", [m.shown / MB for m in counted], "MB"),
        trend("store, nothing collected", [m.store_uncollected / MB for m in counted], "MB"),
        trend(
            f"store, collected every {options.collect} runs, at the same point of each",
            [m.store / MB for m in collected],
            "MB",
            per="collection",
        ),
        trend("store after a collection, without registered models", soak.unregistered[1:], "MB", per="collection"),
        Row(
            "a collection",
            f"{sum(collections) / len(collections):.1f} s",
            limit=f"{len(collections)} of them freed {soak.freed / MB:.0f} MB",
        ),
        Row("stages computed a run", f"{min(m.ran for m in counted)}–{max(m.ran for m in counted)}", limit=f"{first.ran} in the first"),
    ]
    report("Soak", rows, options.save)


if __name__ == "__main__":
    main()

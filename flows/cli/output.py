"""Output of commands: for a terminal, for logs (plain lines), or one JSON document on stdout."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dora_core.evaluation.metrics import estimate_text
from flows.report.setting_lines import options_text, values_yaml
from flows.run_summary import evaluation_summary
from flows.running.observer import Observer
from tasks.runtime.descriptor import read_result
from tasks.runtime.spec import StageRef
from tasks.stages import study, tune
from tasks.stages.registry import STAGES, parse_result

if TYPE_CHECKING:
    from flows.planning.planned_stage import Plan, PlannedStage
    from flows.run_record import EndedRun
    from flows.running.question import Question
    from infra.doctor import Check
    from infra.store.journal import JournalEvent
    from infra.store.json_files import StoredResult
    from infra.store.store import Store
    from tasks.stages.promote import Answer

SILENT_SECONDS = 30.0
"""Longest silence of a running stage where there is no terminal."""
LINE_SECONDS = 10.0
"""Least time between two progress lines of a stage where there is no terminal."""

WINDOW_SECONDS = 60.0
"""Span of the rates."""

_COLOURS = {"cached": "dim", "ran": "green", "failed": "red", "cancelled": "yellow", "pending": "dim"}


def json_text(value: Mapping[str, Any]) -> str:
    """A JSON document for stdout; characters that its encoding does not have are escaped, not replaced."""
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=1, default=str)
    return text


class Out:
    """Printer: text to stdout, or to stderr when stdout carries the JSON document."""

    def __init__(self, as_json: bool):
        self._as_json = as_json
        console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        self.console = console if console.is_terminal else Console(stderr=as_json, highlight=False, soft_wrap=True, width=160)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def document(self, value: Mapping[str, Any]) -> None:
        if self._as_json:
            print(json_text(value), flush=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        table = _table(*columns)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)

    def links(self, links: Mapping[str, str]) -> None:
        width = max(map(len, links), default=0)
        for name, link in links.items():
            self.say(f"  {name:<{width}}  {link}")

    def plan(self, plan: Plan) -> None:
        table = _table("stage", "", "why", "before")
        for stage in plan.stages:
            before = "" if stage.seconds is None or stage.cached else f"{stage.seconds:.0f} s"
            table.add_row(
                stage.label,
                "cached" if stage.cached else "runs",
                stage.reason.split(": ", 1)[1],
                before,
                style="dim" if stage.cached else "",
            )
        self.console.print(table)
        estimate = plan.estimated_seconds
        parts = [f"{len(plan.to_run)} of {len(plan.stages)} stages run" if plan.to_run else "nothing to do: every stage is cached"]
        parts += [f"{plan.records} records"] if plan.records is not None else []
        parts += [f"about {estimate:.0f} s, as before"] if plan.to_run and estimate is not None else []
        self.say(f"{plan.project}: {', '.join(parts)}")

    def summary(self, ended: EndedRun, store: Store, links: Mapping[str, str]) -> None:
        run = ended.record
        table = _table("stage", "state", "time", "result")
        for stage in run.stages:
            result = store.read_result(stage.stage, stage.digest) if stage.is_finished else None  # never a later run's
            shown = headline(result) if result else ""
            seconds = f"{stage.seconds:.1f} s" if stage.state == "ran" and stage.seconds is not None else ""
            table.add_row(stage.label, f"[{_COLOURS[stage.state]}]{stage.state}[/]", seconds, shown)
        self.console.print(table)
        last = run.stages[-1]
        tables = read_result(store, StageRef(stage=last.stage, digest=last.digest), study.Facts) if last.stage == "study" else None
        if tables is not None:
            for table in main_table(tables.facts):
                self.say("")
                self.console.print(table)
            self.say("")
        if (found := search_of(ended, store)) is not None:
            self.search(found)
        for warning in (*run.notes, *ended.warnings):
            self.say(f"note: {warning}")
        outcome = f"{run.ran} stages ran" if run.ran else "nothing to do: every stage was cached"
        outcome = "stopped" if run.status == "stopped" else outcome
        decision = f" · {run.decision}" if run.decision else ""
        self.say(f"{run.run_id}: {outcome}, {run.seconds:.0f} s{decision}")
        if summary := evaluation_summary(store, run):
            self.say(summary)
        self.links(links)

    def search(self, facts: tune.Facts) -> None:
        """Print the trials of a search, and the best one's values as lines to copy."""
        table = _table("trial", "values", "steps", "golden loss", "golden accuracy", "better by", "state")
        for one in facts.trials:
            steps = f"{one.steps}/{one.planned}" if one.planned else "–"
            measures = (estimate_text(one.loss, ".3f"), estimate_text(one.accuracy, ".3f"), estimate_text(one.gain, "+.3f"))
            values = ", ".join(f"{key.removeprefix('align.')}={value}" for key, value in one.values.items())
            table.add_row(one.name, Text(values), steps, *map(Text, measures), one.state)
        self.say("")
        self.console.print(table)
        self.say(f"judged by golden pairs of {facts.golden_prompts} held-out train prompts: {facts.reason}")
        if facts.best.values:
            self.say(f"to use it: {options_text(facts.best.values)}")
            self.say("or in the configuration:")
            self.say(values_yaml(facts.best.values))

    def checks(self, checks: Iterable[Check]) -> None:
        marks = {True: ("ok  ", "green"), False: ("fix ", "red"), None: ("note", "yellow")}
        for check in checks:
            hint = f"\n     → {check.hint}" if check.hint and check.ok is not True else ""
            self.console.print(Text.assemble(marks[check.ok], f" {check.name}: {check.detail}{hint}"))

    @contextmanager
    def counting(self) -> Iterator[Callable[[str, int, int | None], None]]:
        """Progress callback for one long operation: a line that changes on a terminal, an occasional line elsewhere."""
        shown, pause = time.monotonic(), 0.1 if self.console.is_terminal else LINE_SECONDS
        with self.console.status("") as status:  # shows nothing where there is no terminal

            def progress(what: str, done: int, total: int | None) -> None:
                nonlocal shown
                if time.monotonic() - shown > pause:
                    shown = time.monotonic()
                    text = f"{what}: {done}{f' of {total}' if total else ''}" if done else what
                    (status.update if self.console.is_terminal else self.say)(text)

            yield progress

    @contextmanager
    def watching(self, verbose: bool) -> Iterator[Observer]:
        """Yield an observer for a run: live bars on a terminal, lines elsewhere."""
        if not self.console.is_terminal:
            lines = Lines(self, verbose)
            with lines.life:
                yield lines
            return
        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[note]}", style="dim"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield Bars(self, progress, verbose)


class SignOfLife:
    """Says every half minute that a stage still runs, where it says nothing itself: a log that stands still looks like a hang.

    A context manager: watches while its block runs.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None]):
        self._print = say
        self._running: tuple[str, float] | None = None
        self._said = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sign-of-life", daemon=True)

    def say(self, text: str) -> None:
        """Print a line; the half minute begins anew."""
        self._said = time.monotonic()
        self._print(text)

    def begins(self, label: str) -> None:
        self._running = (label, time.monotonic())

    def ends(self) -> None:
        self._running = None

    def look(self, now: float) -> None:
        running = self._running
        if running is not None and now - self._said >= SILENT_SECONDS:
            self.say(f"{running[0]}: still running, {now - running[1]:.0f} s")

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self.look(time.monotonic())

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


class Lines(Observer):
    """Progress for logs and pipes: a line when a stage starts and ends, occasional ones between, and at least one in half a minute."""

    def __init__(self, out: Out, verbose: bool):
        self._verbose, self.life = verbose, SignOfLife(out.say)
        self._say = self.life.say
        self._next: dict[str, float] = {}
        self._meter = Meter()

    def waiting(self, why: str) -> None:
        self._say(why)

    def planned(self, run_id: str, plan: Plan) -> None:
        self._say(f"{run_id}: {len(plan.to_run)} of {len(plan.stages)} stages run")

    def started(self, stage: PlannedStage) -> None:
        self.life.begins(stage.label)
        self._say(f"{stage.label}: {stage.reason}")

    def event(self, stage: PlannedStage, event: JournalEvent) -> None:
        if event["kind"] == "notice":
            self._say(f"{stage.label}: {event['text']}")
        text = self._meter.read(stage.label, event)
        if text and time.monotonic() >= self._next.get(stage.label, 0.0):
            self._next[stage.label] = time.monotonic() + LINE_SECONDS
            self._say(f"{stage.label}: {text}")

    def log(self, stage: PlannedStage, line: str) -> None:
        if self._verbose:
            self._say(f"{stage.label} | {line}")

    def finished(self, stage: PlannedStage, state: str, result: StoredResult | None, why: str = "") -> None:
        self.life.ends()
        self._say(f"{stage.label}: {_ending(state, result, why)}")


class Bars(Observer):
    """Progress for a terminal: one bar for the stage that runs; finished stages stay above it as lines."""

    def __init__(self, out: Out, progress: Progress, verbose: bool):
        self._out, self._progress, self._verbose = out, progress, verbose
        self._bars: dict[str, TaskID] = {}
        self._meter = Meter()
        self._waiting: TaskID | None = progress.add_task("starting", total=None, note="")

    def waiting(self, why: str) -> None:
        self._out.say(why)

    def planned(self, run_id: str, plan: Plan) -> None:
        if self._waiting is not None:
            self._progress.remove_task(self._waiting)
            self._waiting = None
        self._out.say(f"{run_id}: {len(plan.to_run)} of {len(plan.stages)} stages run")

    def started(self, stage: PlannedStage) -> None:
        self._bars[stage.label] = self._progress.add_task(stage.label, total=None, note=stage.reason)

    def event(self, stage: PlannedStage, event: JournalEvent) -> None:
        if event["kind"] == "notice":
            self._out.say(f"{stage.label}: {event['text']}")
        if event["kind"] == "progress":
            note = self._meter.read(stage.label, event)
            self._progress.update(self._bars[stage.label], completed=event["done"], total=event["total"], note=note)

    def log(self, stage: PlannedStage, line: str) -> None:
        if self._verbose:
            self._out.say(f"{stage.label} | {line}")

    def finished(self, stage: PlannedStage, state: str, result: StoredResult | None, why: str = "") -> None:
        if stage.label in self._bars:
            self._progress.remove_task(self._bars.pop(stage.label))
        self._out.console.print(Text.assemble((stage.label, _COLOURS[state]), ": ", _ending(state, result, why)))

    def decide(self, question: Question) -> Answer | None:
        from flows.cli.decide import ask_here

        self._progress.stop()  # bars would be drawn over the answer
        answer = ask_here(self._out.console, question)
        self._progress.start()
        return answer


class Meter:
    """Progress events as text: ``"1200/4000 responses, 310/s, 9 s left, fold 2"``. Rate and time left are those of the last minute: an
    attempt that waited, or that was resumed, is not slower for it."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], deque[tuple[float, int]]] = {}

    def read(self, label: str, event: JournalEvent) -> str:
        """Empty for events that are not progress."""
        if event["kind"] != "progress":
            return ""
        seen = self._seen.setdefault((label, event["unit"]), deque())
        if seen and (event["done"] < seen[-1][1] or event["time"] - seen[-1][0] > WINDOW_SECONDS):  # resumed, or it has waited
            seen.clear()
        seen.append((event["time"], event["done"]))
        while len(seen) > 2 and event["time"] - seen[1][0] > WINDOW_SECONDS:
            seen.popleft()
        seconds, work = event["time"] - seen[0][0], event["done"] - seen[0][1]
        rate = ""
        if seconds > 0.5 and work > 0:
            left = (event["total"] - event["done"]) * seconds / work
            rate = f", {work / seconds:.3g}/s" + (f", {_time_left(left)} left" if left >= 1 else "")
        note = f", {event['note']}" if event["note"] else ""
        return f"{event['done']}/{event['total']} {event['unit']}{rate}{note}"


def _time_left(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def search_of(ended: EndedRun, store: Store) -> tune.Facts | None:
    """Return the facts of the run's search; None for another run."""
    last = ended.record.stages[-1]
    found = read_result(store, StageRef(stage=last.stage, digest=last.digest), tune.Facts) if last.stage == tune.Spec.stage else None
    return found.facts if found else None


def search_document(ended: EndedRun, store: Store) -> dict[str, Any]:
    """Return the search as part of the document of ``--json``; empty for another run."""
    facts = search_of(ended, store)
    return {} if facts is None else {"search": facts.model_dump(mode="json"), "options": options_text(facts.best.values)}


def main_table(facts: study.Facts) -> Iterator[Table]:
    """The first table of policies, with their samples' win rate against those of the start; nothing for a study of h alone."""
    name = next((name for name in facts.tables if name != "calibration"), None)
    if name is None:
        return
    table = _table(name, "win rate against the start", "minus erm", "minus golden alone", "gold reward", "KL, nats", "tokens")
    for cell in facts.cells_of(name):
        shown = [estimate_text(cell.estimates.get(m), form) for m, form in _MAIN.items()]
        number = f" · round {cell.params.round}" if cell.params.round else ""
        table.add_row(cell.method + number, *shown)
    yield table


_MAIN = {"win_rate": ".3f", "win_rate_lift": "+.3f", "win_rate_over_golden": "+.3f", "gold": ".2f", "kl": ".1f", "tokens": ".0f"}


def headline(result: StoredResult) -> str:
    """Return the main number of a stage as text, from its ``result.json``."""
    return STAGES[result["stage"]].headline(parse_result(result))


def _ending(state: str, result: StoredResult | None, why: str) -> str:
    if result is None:
        return f"{state}: {why}" if why else state
    return f"cached ({headline(result)})" if state == "cached" else f"{headline(result)} in {result['seconds']:.1f} s"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table

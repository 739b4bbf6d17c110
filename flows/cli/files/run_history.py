"""Content of `dora runs` and `dora logs`: runs as lines, one run, the difference of two, the log of a stage."""

from __future__ import annotations

import textwrap
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dora_core.errors import ConfigError, ServiceError, did_you_mean
from flows.report.find import ReportError
from flows.report.head import head_of, promotion_of
from flows.report.setting_lines import changed_settings
from flows.run_record import UNCHANGED, RunRecord, StageRecord, read_records
from flows.run_summary import evaluation_summary
from infra.ray_jobs import RayJobs
from infra.settings import Settings
from infra.store.store import Store

if TYPE_CHECKING:
    from flows.cli.output import Out

WIDTH = 80
"""Columns of the narrowest terminal that shows every line whole."""


@dataclass(frozen=True)
class RunLine:
    """One run of the list; ``link`` is its page in Prefect or MLflow, or the command that writes its report."""

    when: str
    verdict: str
    run_id: str
    why: str
    link: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def listed(store: Store, project: str | None, count: int) -> list[RunLine]:
    """Return the newest runs.

    Raises:
        ReportError: there are none.
    """
    records = sorted(read_records(store), key=lambda run: run.started, reverse=True)
    chosen = [run for run in records if project is None or run.project == project]
    if not chosen:
        projects = sorted({run.project for run in records})
        hint = did_you_mean(project, projects) if project and projects else "start one with `dora realign -c FILE` or `dora demo`"
        raise ReportError(f"there are no runs{f' of project {project!r}' if project else ''} in {store.uri}", hint=hint)
    return [_line(store, run) for run in chosen[:count]]


def _line(store: Store, run: RunRecord) -> RunLine:
    head = head_of(run, promotion_of(store, run))
    why = head.reason or (evaluation_summary(store, run) if head.title != UNCHANGED else "") or head.text
    web = next((link for link in (run.links.prefect, run.links.mlflow) if link and link.startswith("http")), None)
    return RunLine(_when(run.started), head.title, run.run_id, why, web or f"dora report {run.run_id}")


def say_list(out: Out, lines: list[RunLine]) -> None:
    """Print two lines a run: when, verdict and id; then why, cut to the width."""
    width = max(len(line.verdict) for line in lines)
    for line in lines:
        out.say(f"{line.when}  {line.verdict:<{width}}  {line.run_id}")
        out.say(f"    {textwrap.shorten(line.why, WIDTH - 4, placeholder=' …')}")
        out.say(f"    {line.link}")


def say_run(out: Out, store: Store, run: RunRecord) -> None:
    """Print the head of a run as its page has it, its stages, and its links."""
    head = head_of(run, promotion_of(store, run))
    out.say(f"{run.run_id}: {head.title}")
    for text in filter(None, (head.text, head.reason, evaluation_summary(store, run))):
        out.say(textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  "))
    for step in head.steps:
        out.say(f"  next: {step}")
    out.say("")
    width = max((len(stage.label) for stage in run.stages), default=0)
    for stage in run.stages:
        seconds = f"{stage.seconds:.0f} s" if stage.state == "ran" and stage.seconds is not None else ""
        out.say(f"{stage.label:<{width}}  {stage.state:<7} {seconds:>8}".rstrip())
        for note in stage.notes:
            out.say(textwrap.fill(note, WIDTH, initial_indent="    note: ", subsequent_indent="    "))
    out.say("")
    out.links({name: link for name, link in run.links if link} | {"report": f"dora report {run.run_id}"})


@dataclass(frozen=True)
class Difference:
    """Two runs, side by side.

    Attributes:
        verdicts: title of each run's head.
        settings: key → its two values, as text; "–" where a run does not have it.
        stages: labels of stages with different results.
        metrics: ``stage.metric`` → its two values; of the stages that differ.
    """

    runs: tuple[str, str]
    verdicts: tuple[str, str]
    settings: dict[str, tuple[str, str]]
    stages: list[str]
    metrics: dict[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compared(store: Store, one: RunRecord, other: RunRecord) -> Difference:
    """Compare the first run with the second."""
    heads = (head_of(one, promotion_of(store, one)), head_of(other, promotion_of(store, other)))
    pairs = [(stage, found) for stage in one.stages if (found := _same(stage, other)) is not None and found.digest != stage.digest]
    metrics: dict[str, tuple[float, float]] = {}
    for before, now in pairs:
        first, second = _metrics(store, before), _metrics(store, now)
        metrics |= {f"{before.label}.{name}": (first[name], second[name]) for name in first if name in second}
    changed = {name: pair for name, pair in metrics.items() if pair[0] != pair[1]}
    labels = [stage.label for stage, _ in pairs]
    return Difference(
        (one.run_id, other.run_id), (heads[0].title, heads[1].title), changed_settings(one.config, other.config), labels, changed
    )


def _metrics(store: Store, stage: StageRecord) -> dict[str, float]:
    """Return the metrics of a stage that the run finished; a later run's result is not its own."""
    result = store.read_result(stage.stage, stage.digest) if stage.is_finished else None
    return result["metrics"] if result else {}


def say_difference(out: Out, difference: Difference) -> None:
    for name, verdict in zip(difference.runs, difference.verdicts, strict=True):
        out.say(f"{name}: {verdict}")
    rows = [(key, *values) for key, values in difference.settings.items()]
    out.say("")
    out.say("settings: equal" if not rows else "settings:")
    for key, before, now in rows:
        out.say(f"  {key}: {textwrap.shorten(before, 40)} → {textwrap.shorten(now, 40)}")
    out.say(f"results: {', '.join(difference.stages) + ' differ' if difference.stages else 'equal'}")
    for name, (before_value, now_value) in difference.metrics.items():
        out.say(f"  {name}: {before_value:.4g} → {now_value:.4g}")


def log_of(settings: Settings, run: RunRecord, label: str | None) -> tuple[str, str]:
    """Return the label and the log of a stage's job.

    Raises:
        ConfigError: the run has no such stage, or none with a log. ReportError: the log was not kept.
    """
    stage = _chosen(run, label)
    if stage.submission_id is None:
        where = f"in the flow's own process: {run.links.prefect}" if run.links.prefect else "in the command's own process, which printed it"
        raise ConfigError(f"{stage.label} has no job, hence no log: it {'ran ' + where if stage.state != 'cached' else 'was cached'}")
    kept = settings.log_folder / f"{stage.submission_id}.log"
    if kept.is_file():
        return stage.label, kept.read_text(encoding="utf-8", errors="replace")
    places = settings.effective()
    if places.ray_dashboard is not None:
        with suppress(ServiceError):
            text = RayJobs(places.ray_dashboard, places.ray_environment, unreachable_seconds=5.0).log(stage.submission_id)
            if text:
                return stage.label, text
    raise ReportError(
        f"the log of {stage.label} was not kept: {kept} is written for failed jobs, and Ray's head keeps those of its own",
        hint="`dora up` keeps a head, and with it the logs, beyond a command; -v prints them while it runs",
    )


def _chosen(run: RunRecord, label: str | None) -> StageRecord:
    by_label = {stage.label: stage for stage in run.stages}
    if label is not None:
        if label not in by_label:
            raise ConfigError(f"{run.run_id} has no stage {label!r}", hint=did_you_mean(label, list(by_label)))
        return by_label[label]
    for state in ("running", "failed"):
        found = next((stage for stage in run.stages if stage.state == state), None)
        if found is not None:
            return found
    raise ConfigError(f"no stage of {run.run_id} runs or has failed", hint=f"name one: {', '.join(by_label)}")


def _same(stage: StageRecord, run: RunRecord) -> StageRecord | None:
    return next((other for other in run.stages if other.label == stage.label), None)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")

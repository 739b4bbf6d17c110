"""Home page of `dora up`: per project the champion, the last runs with their verdicts, trends, data quality; links to the servers' pages.

Everything but the champion is read from the store; read-only. ``serve.py`` serves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.report.head import head_of, promotion_of
from flows.report.html import render_template, web_links
from flows.report.numbers import percent
from flows.report.overview import Caveat, Evidence, caveats
from flows.report.past import evaluated, facts_in, projects, runs_of
from flows.report.trend import nights, trend_figures
from flows.run_record import RunRecord
from flows.run_summary import evaluation_summary
from infra.store.store import Store
from infra.tracking.model_registry import Registered
from tasks.stages import calibrate, ingest
from tasks.stages._drift_facts import Facts as DriftFacts

if TYPE_CHECKING:
    from markupsafe import Markup

RUNS = 12
PROJECTS = 10


@dataclass(frozen=True)
class RunLine:
    """A run of the list: verdict, why, and the pages of other systems by name."""

    run: RunRecord
    verdict: str
    why: str
    links: dict[str, str]


@dataclass(frozen=True)
class Quality:
    """The data of the newest run that read some: tiles (number, label), and the warnings of its stages."""

    run: RunRecord
    tiles: list[tuple[str, str]]
    warnings: list[str]


@dataclass(frozen=True)
class Project:
    """A project's part of the page; ``caveats`` are those of its newest evaluation."""

    name: str
    lines: list[RunLine]
    caveats: list[Caveat]
    trend: list[Markup]
    quality: Quality | None


def render_home(
    store: Store, pages: Mapping[str, str], champions: Sequence[Registered], missing: str = "", mlflow: str | None = None
) -> str:
    """Render the page.

    Args:
        pages: address by name of the servers' pages.
        champions: registered versions with an alias.
        missing: why the registry could not be read; "" where it was.
        mlflow: address of MLflow's pages, for links to versions.
    """
    names = projects(store)
    return render_template(
        "home.html",
        store=store.uri,
        pages=pages,
        champions=champions,
        missing=missing,
        mlflow=mlflow,
        projects=[project(store, name, place) for place, name in enumerate(names[:PROJECTS])],
        others=names[PROJECTS:],
    )


def project(store: Store, name: str, place: int) -> Project:
    """Read a project; ``place`` is unique on the page."""
    runs = list(runs_of(store, name))
    lines = [_line(store, run) for run in runs[:RUNS]]
    ended = evaluated(runs)
    return Project(
        name,
        lines,
        caveats=list(caveats(Evidence.of_run(store, ended[-1]))) if ended else [],
        trend=trend_figures(nights(store, ended), f"p{place}"),
        quality=next((found for line in lines if (found := _quality(store, line.run)) is not None), None),
    )


def _line(store: Store, run: RunRecord) -> RunLine:
    head = head_of(run, promotion_of(store, run))
    return RunLine(run, head.title, head.reason or evaluation_summary(store, run) or head.text, web_links(run.links))


def _quality(store: Store, run: RunRecord) -> Quality | None:
    data = facts_in(store, run, "ingest", ingest.Facts)
    if data is None:
        return None
    moved, factors = facts_in(store, run, "drift", DriftFacts), facts_in(store, run, "calibrate", calibrate.Facts)
    tiles = [
        (f"{data.rows_in:,}", "rows read"),
        (percent(data.rows_bad / max(data.rows_in, 1)), "quarantined"),
        (f"{data.records.train:,} + {data.records.eval:,}", "records to train on + held out"),
        (str(len(data.sources)), "sources"),
    ]
    tiles += [(moved.decision, f"drift: {moved.reason}")] if moved is not None else []
    tiles += [(percent(factors.ess), "effective sample size")] if factors is not None else []
    found = [one for one in (data, moved, factors) if one is not None]
    return Quality(run, tiles, [warning for one in found for warning in one.warnings])

"""The page of one realignment: self-contained HTML from the run's manifest and the ``result.json`` of its stages.

Nothing is computed here and nothing loaded from elsewhere: style and figures are inline, so the file can be mailed, archived and opened
without a server. Everything that comes from data is escaped. A stage without a result gets a sentence that says why.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dora_core.errors import DoraError, did_you_mean
from infra.report.figures import GRID, INK, PALETTE, STYLE, figures_for
from infra.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
TRAINING = ("sft", "align")
DECISIONS = {
    "promoted": "The aligned model passed the gate and is the champion now.",
    "challenger": "The aligned model passed the gate and is registered as challenger; a person decides.",
    "refused": "The aligned model did not pass the gate; the champion stays.",
}
MEASURES = {"accuracy": "preference accuracy", "ranking": "ranking accuracy", "margin": "reward margin (nats)"}


class ReportError(DoraError):
    """There is no such run to report on."""


def find_run(store: Store, query: str) -> str:
    """The run id meant by ``latest``, a unique beginning of an id, or a path to the run's folder or its ``run.json``.

    Raises:
        ReportError: nothing or more than one run is meant; the hint lists what there is.
    """
    runs = [name for name in store.list("runs") if store.read_json(f"runs/{name}/run.json") is not None]
    if not runs:
        raise ReportError(
            f"there are no runs in {store.uri}", hint="start one with `dora realign -c FILE` or `dora demo`, or set DORA_STORE"
        )
    if query == "latest":
        return max(runs, key=lambda name: store.read_json(f"runs/{name}/run.json")["started"])
    wanted = query.rstrip("/").removesuffix("/run.json").rsplit("/", 1)[-1]
    found = [name for name in runs if name == wanted] or [name for name in runs if name.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ReportError(f"{query!r} is the beginning of {len(found)} runs", hint=f"give more of the id: {', '.join(found)}")
    raise ReportError(f"there is no run {query!r} in {store.uri}", hint=did_you_mean(wanted, ["latest", *runs]))


def render(store: Store, run_id: str) -> str:
    """The whole page as text.

    Raises:
        ReportError: the run has no manifest.
    """
    import jinja2
    import yaml

    run = store.read_json(f"runs/{run_id}/run.json")
    if run is None:
        raise ReportError(f"run {run_id!r} has no manifest in {store.uri}", hint="list the runs with a wrong id: `dora report x`")
    results = {s["label"]: store.read_result(s["stage"], s["digest"]) for s in run["stages"] if s["digest"]}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "count": _count,
        "number": _number,
        "percent": _percent,
        "interval": _interval,
        "when": _when,
        "duration": _duration,
    }
    facts = {label: result["facts"] for label, result in results.items() if result}
    return environment.get_template("page.html").render(
        css=jinja2.Template((HERE / "page.css").read_text()).render(),
        run=run,
        config=yaml.safe_dump(run["config"], sort_keys=False, allow_unicode=True),
        links={name: url for name, url in run["links"].items() if url and url.startswith(("http://", "https://"))},
        results=results,
        facts=facts,
        figures={label: _inline(label, result) for label, result in results.items() if result},
        missing={stage: _why_missing(run, stage) for stage in ("ingest", "classify", "calibrate", "align", "evaluate", "promote")},
        training=[label for s in run["stages"] if s["stage"] in TRAINING and (label := s["label"]) in facts],
        decision=_decision(run, facts),
        measures=MEASURES,
    )


def _decision(run: dict[str, Any], facts: dict[str, Any]) -> tuple[str, str]:
    """The word in big letters and the sentence below it."""
    decision = facts["promote"]["decision"] if "promote" in facts else run["decision"]
    if decision:
        return decision, DECISIONS[decision]
    sentences = {
        "running": "The run has not ended; this page shows what is finished.",
        "failed": "The run failed before a decision; the champion stays.",
        "cancelled": "The run was cancelled before a decision; the champion stays.",
        "completed": "This run ends without a decision: it had no promotion stage.",
    }
    return run["status"], sentences[run["status"]]


def _why_missing(run: dict[str, Any], stage: str) -> str:
    """A sentence for a section that has nothing to show."""
    planned = [s for s in run["stages"] if s["stage"] == stage]
    if not planned:
        if stage in ("classify", "calibrate"):
            objective = run["config"].get("align", {}).get("objective", {}).get("name", "chosen")
            return f"Not part of this run: the {objective} objective does not use calibration factors."
        return "Not part of this run."
    if planned[0]["state"] == "failed":
        return f"The stage failed{': ' + run['error']['message'] if run['error'] else '.'}"
    if planned[0]["state"] in ("pending", "running"):
        if run["status"] == "running":
            return "The stage is running." if planned[0]["state"] == "running" else "The stage has not run yet."
        ended = "was cancelled" if run["status"] == "cancelled" else "failed"
        return f"The stage did not finish: the run {ended} first."
    return "The stage's result is no longer in the store."


# -------------------------------------------------------------------------------------------------------------- figures


def _inline(label: str, result: dict[str, Any]) -> dict[str, Any]:
    from markupsafe import Markup

    figures = figures_for(result["stage"], result)
    return {name: Markup(_svg(figure, f"{label}-{name}")) for name, figure in figures.items()}


def _svg(figure: Figure, name: str) -> str:
    """Inline SVG in the page's own colours, with ids that are unique on the page."""
    from matplotlib import rc_context

    buffer = StringIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    prefix = re.sub(r"[^a-z0-9]", "-", name.lower())
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        rf'<svg \1 role="img" aria-label="{prefix}" style="max-width:{figure.get_figwidth() * 1.07:.2f}in">',
        text,
        count=1,
    )
    text = re.sub(r"font: ([\d.]+px|bold [\d.]+px)[^;\"]*", r"font: \1 var(--font)", text)
    for colour, replacement in ((INK, "currentColor"), (GRID, "var(--line)"), (PALETTE[0].lower(), "var(--blue)")):
        text = text.replace(colour, replacement)
    return text


# -------------------------------------------------------------------------------------------------------------- filters


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _interval(estimate: dict[str, float] | None, digits: int = 3) -> str:
    if estimate is None or estimate["value"] is None:
        return "–"
    if estimate["low"] is None:
        return f"{estimate['value']:.{digits}f}"
    return f"{estimate['value']:.{digits}f} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"


def _when(seconds: float | None) -> str:
    """An epoch time as text, UTC, to the minute."""
    return "–" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"

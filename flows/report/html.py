"""Common parts of the pages: templates that escape everything, figures as inline SVG, and filters for numbers and times."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dora_core.evaluation.metrics import is_defined
from flows.report.drawing import GRID, INK, PALETTE, STYLE
from flows.report.evaluation_figures import opponent, wins_of
from flows.report.figure_registry import FIGURES
from flows.report.figures import figures_for
from flows.report.numbers import duration, interval, p_value, percent
from flows.run_record import Links
from tasks.runtime.descriptor import StageResult

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

HERE = Path(__file__).parent


def render_template(name: str, **content: Any) -> str:
    """Render a template of this folder with the pages' style and filters; an undefined name in it is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "count": _count,
        "number": _number,
        "percent": percent,
        "range": _range,
        "interval": interval,
        "bounded": _bounded,
        "p_value": p_value,
        "when": _when,
        "duration": duration,
        "headings": headings,
    }
    environment.globals |= {"opponent": opponent, "wins_of": wins_of}
    return environment.get_template(name).render(css=(HERE / "page.css").read_text(encoding="utf-8"), **content)


def headings(sections: str) -> list[tuple[str, Markup]]:
    """Return (id, title) of the sections of rendered markup: its contents. Titles are escaped as they are there, without details."""
    from markupsafe import Markup

    found = re.findall(r'<section class="card" id="([^"]+)">\s*(?:<details[^>]*>\s*<summary>|<h2>)([^<]*)', sections)
    return [(section, Markup(title.strip())) for section, title in found]


def web_links(links: Links) -> dict[str, str]:
    """Return the links that a browser can open."""
    return {name: url for name, url in links if url and url.startswith(("http://", "https://"))}


def yaml_text(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


@dataclass(frozen=True)
class InlineFigure:
    """A figure as part of a page; ``part`` as in ``figure_registry.py``."""

    markup: Markup
    part: str


def inline_figures(label: str, result: StageResult[Any]) -> list[InlineFigure]:
    """Return every figure of a stage's result as markup, in the order of registration; ``label`` is unique on the page."""
    registered = tuple(FIGURES.get(result.stage, {}))
    return list(_drawn(_Drawing(label, result.stage, registered, result.facts.model_dump_json(), result)))


@dataclass(frozen=True)
class _Drawing:
    """What the figures of a stage on a page depend on; the result holds nothing else that they do."""

    label: str
    stage: str
    registered: tuple[str, ...]
    facts: str
    result: StageResult[Any] = field(compare=False)


@lru_cache(maxsize=64)
def _drawn(drawing: _Drawing) -> tuple[InlineFigure, ...]:
    """Draw once what a run shows twice: its report for MLflow, and the one that the command writes."""
    registered, drawn = FIGURES.get(drawing.stage, {}), figures_for(drawing.result)
    return tuple(InlineFigure(markup(figure, f"{drawing.label}-{name}"), registered[name].part) for name, figure in drawn.items())


def markup(figure: Figure, name: str) -> Markup:
    """A figure as part of a page; ``name`` is unique there."""
    from markupsafe import Markup

    return Markup(_svg(figure, name))


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


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _number(value: float | None, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if is_defined(value) else "–"


def _bounded(value: float | None, low: float | None, high: float | None, digits: int = 3) -> str:
    """A number and its bounds, as :func:`interval` writes them."""
    if not is_defined(value):
        return "–"
    return _number(value, digits) + (f" [{_number(low, digits)}, {_number(high, digits)}]" if is_defined(low) else "")


def _range(low: float | None, high: float | None, digits: int = 3) -> str:
    """``"0.690 … 0.731"``; empty where a bound is undefined."""
    return f"{low:.{digits}f} … {high:.{digits}f}" if is_defined(low) and is_defined(high) else ""


def _when(seconds: float | None) -> str:
    """An epoch time as text, UTC, to the minute."""
    return "–" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")

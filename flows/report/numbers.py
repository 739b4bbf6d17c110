"""Number formats of reports: shares, p-values, durations, and estimates with their intervals."""

from __future__ import annotations

from dora_core.evaluation.metrics import Bounded, estimate_text


def percent(value: float) -> str:
    return f"{value:.1%}"


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval(estimate: Bounded | None, digits: int = 3) -> str:
    return estimate_text(estimate, f".{digits}f")


def duration(seconds: float | None) -> str:
    """Seconds as text: ``"4.2 s"``, ``"4 min 15 s"``, ``"2 h 05 min"``; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"

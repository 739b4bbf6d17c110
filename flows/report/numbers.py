"""Number formats of reports: shares, p-values, and estimates with their intervals."""

from __future__ import annotations

from dora_core.evaluation.metrics import Bounded, estimate_text


def percent(value: float) -> str:
    return f"{value:.1%}"


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval(estimate: Bounded | None, digits: int = 3) -> str:
    return estimate_text(estimate, f".{digits}f")

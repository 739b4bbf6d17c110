"""How reports write numbers: shares, p-values, and estimates with their intervals."""

from __future__ import annotations


def percent(value: float) -> str:
    return f"{value:.1%}"


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval(estimate: dict[str, float] | None, digits: int = 3) -> str:
    if estimate is None or estimate["value"] is None:
        return "–"
    if estimate["low"] is None:
        return f"{estimate['value']:.{digits}f}"
    return f"{estimate['value']:.{digits}f} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"

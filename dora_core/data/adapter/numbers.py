"""Numbers of labels: what counts as a number, what as not measured, and what is refused."""

from __future__ import annotations

import re
import sys
from decimal import Decimal
from typing import Any

NOT_MEASURED = frozenset({"", "n/a", "na", "null", "none", "nan"})
"""Texts that mean that there is no number; case and surrounding white space are ignored."""

_DECIMAL = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_COMMA = re.compile(r"[+-]?\d+(?:[.,]\d+)*,\d+", re.ASCII)


class NotANumber(ValueError):
    """A value that cannot be read as a number; ``nonfinite`` if it is one without a finite value."""

    def __init__(self, message: str, *, nonfinite: bool = False):
        super().__init__(message)
        self.nonfinite = nonfinite


def to_number(value: Any, missing: frozenset[str] = NOT_MEASURED) -> float | None:
    """A finite float, or None where nothing was measured.

    Args:
        value: a number, a boolean (1 or 0), a plain decimal number as text, a text of ``missing``, or null.

    Raises:
        NotANumber: anything else; the message says what was found.
    """
    kind = type(value)
    if kind is float or kind is int:
        if -sys.float_info.max <= value <= sys.float_info.max:  # NaN compares false; an int may exceed any float
            return float(value)
        raise NotANumber("is NaN, infinite or beyond float64", nonfinite=True)
    if value is None:
        return None
    if kind is bool:
        return 1.0 if value else 0.0
    if kind is str:
        text = value.strip()
        if text.casefold() in missing:
            return None
        if _DECIMAL.fullmatch(text):
            number = float(text)
            if abs(number) <= sys.float_info.max:
                return number
            raise NotANumber("is beyond float64", nonfinite=True)
        shown = ascii(text[:40])
        if _COMMA.fullmatch(text):
            raise NotANumber(f"is {shown}: a comma may be a decimal point or separate thousands; write it with a point")
        if text.casefold().lstrip("+-") in ("inf", "infinity"):
            raise NotANumber(f"is {shown}, expected a finite number", nonfinite=True)
        raise NotANumber(f'is {shown}, expected a number; texts that mean "not measured" go under `label.missing`')
    if isinstance(value, int | float | Decimal):  # a subclass, such as a NumPy float; decimals of Parquet and SQL
        return to_number(float(value), missing)
    raise NotANumber(f"is {describe(value)}, expected a number or null")


def is_nan(value: Any) -> bool:
    """Whether a value is the float that pandas and JSON writers use for a missing one."""
    return type(value) is float and value != value


def describe(value: Any) -> str:
    """The kind of a value in words, with the keys of a struct."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        keys = ", ".join(ascii(k)[1:-1] if isinstance(k, str) else ascii(k) for k in list(value)[:12])
        return f"a struct with the keys {keys or '(none)'}" + (", …" if len(value) > 12 else "")
    if isinstance(value, list):
        return f"a list of {len(value)}"
    names = {str: "text", bool: "a boolean", int: "a number", float: "a number", bytes: "bytes"}
    return names.get(type(value), type(value).__name__)

"""Groups of records by the values of a carried column: texts by value, numbers and times by quantile, rare values together.

Shape legend: R records, B bins.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from dora_core.config.method import Grouping
from dora_core.config.path_syntax import quote_key
from dora_core.data.adapter.paths import CompiledPath, Missing

NAME_CHARS = 64
"""Longest name of a group; of a longer value the beginning and a digest."""


@dataclass(frozen=True)
class RowGroups:
    """One grouping of R records.

    Attributes:
        name_R: name of each record's group; None where the record has no value.
        order: the names, bins ascending, other groups by size.
        merged: values whose records are together in the last group, "other".
    """

    name_R: np.ndarray
    order: tuple[str, ...]
    merged: int = 0


def group_rows(extras: Iterable[str | None], grouping: Grouping) -> RowGroups:
    """Group records by a carried column.

    Args:
        extras: of each record, the column ``extra`` of ``records.parquet``: a JSON object of the carried columns.
    """
    path = CompiledPath(grouping.column)
    values = [None if extra is None else _value_of(json.loads(extra), grouping.column, path) for extra in extras]
    given = [value for value in values if value is not None]
    if grouping.bins is not None and len(set(map(_name, given))) > grouping.most:
        if all(_is_number(value) for value in given):
            return _binned(values, [float(value) for value in given], grouping.bins, times=False)
        moments = [_moment(value) for value in given]
        if all(moment is not None for moment in moments):
            return _binned(values, [moment for moment in moments if moment is not None], grouping.bins, times=True)
    return _named([None if value is None else _name(value) for value in values], grouping.most)


def _value_of(carried: dict[str, Any], column: str, path: CompiledPath) -> Any:
    """The value at ``column``; a list of one value is that value. None where there is none."""
    for key in (column, quote_key(column)):
        if key in carried:
            value = carried[key]
            break
    else:
        value = path.get(carried)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return None if type(value) is Missing or value in ("", [], {}) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _moment(value: Any) -> float | None:
    """Seconds since 1970 of a date in ISO 8601; one without a zone is in UTC."""
    if not isinstance(value, str) or len(value) < len("2024-01-31"):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _name(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 3 and 3.0 are one value
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    if len(text) <= NAME_CHARS:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{text[: NAME_CHARS - 10]}… {digest}"


def _named(name_R: list[str | None], most: int) -> RowGroups:
    """Groups by value; beyond ``most`` the smallest are together."""
    sizes = Counter(name for name in name_R if name is not None)
    ordered = sorted(sizes, key=lambda name: (-sizes[name], name))
    kept, rest = ordered[:most], ordered[most:]
    if not rest:
        return RowGroups(np.array(name_R, dtype=object), tuple(kept))
    other = f"other ({len(rest)} values)"
    named = {name: name for name in kept} | dict.fromkeys(rest, other)
    return RowGroups(np.array([None if name is None else named[name] for name in name_R], dtype=object), (*kept, other), len(rest))


def _binned(values: Sequence[Any], number_G: list[float], bins: int, *, times: bool) -> RowGroups:
    """Groups by quantile: half-open intervals, the last one closed. Equal numbers are never in two bins.

    Args:
        number_G: of the values that are not None, in order.
    """
    numbers = np.array(number_G)
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, bins + 1), method="inverted_cdf"))  # an edge is one of the numbers
    last = max(len(edges) - 2, 0)
    bin_G = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, last)
    texts = _edge_texts(edges, times=times)
    labels = [f"[{texts[b]}, {texts[b + 1]}{']' if b == last else ')'}" for b in range(len(edges) - 1)]
    found = iter(bin_G.tolist())
    name_R = [None if value is None else labels[next(found)] for value in values]
    return RowGroups(np.array(name_R, dtype=object), tuple(label for b, label in enumerate(labels) if (bin_G == b).any()))


def _edge_texts(edges: np.ndarray, *, times: bool) -> list[str]:
    """The shortest texts that tell the edges apart."""
    texts: list[str] = []
    for digits in (10, 16, 19, 26) if times else range(3, 18):
        if times:
            moments = [datetime.fromtimestamp(float(edge), UTC).replace(tzinfo=None) for edge in edges]
            texts = [moment.isoformat(" ", timespec="microseconds")[:digits] for moment in moments]
        else:
            texts = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(texts)) == len(texts):
            break
    return texts

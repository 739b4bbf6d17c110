"""Names, texts and batches within MLflow's limits, so that no value makes it refuse a run."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from infra.tracking.outbox import MetricRow, TextRow

# MLflow's limits (mlflow/utils/validation.py, 3.17).
PARAM_CHARACTERS, TAG_CHARACTERS, KEY_CHARACTERS, DIGEST_CHARACTERS = 6000, 8000, 250, 36
BATCH, ENTRIES = {"metrics": 1000, "params": 100, "tags": 100}, 1000
"""Most entries of one call: of each kind, and of all together."""


def clean_name(name: str) -> str:
    """Make a key that MLflow accepts: letters, digits, and ``_ - . / space``; at most 250 characters, no empty or dotted path part."""
    parts = re.sub(r"[^A-Za-z0-9_./ -]", "_", name).split("/")
    return "/".join(p for p in parts if p.strip(". "))[:KEY_CHARACTERS] or "_"


def shorten(text: str, limit: int) -> str:
    """Return ``text``, or its beginning with the length and digest of the whole if it is longer than ``limit`` characters."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= limit:
        return text
    tail = f"… ({len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"
    return text[: limit - len(tail)] + tail


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys and text values: ``{"a": {"b": 1}}`` gives ``("a.b", "1")``; lists become JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


def metric_rows(rows: Iterable[MetricRow]) -> list[MetricRow]:
    """Metrics under names that MLflow accepts; those without a finite value are left out."""
    return [(clean_name(name), value, stamp, step) for name, value, stamp, step in rows if math.isfinite(value)]


def text_chunks(kind: Literal["params", "tags"], items: Sequence[tuple[str, object]]) -> Iterator[list[TextRow]]:
    """Names and texts that MLflow accepts, as many at a time as one call may hold."""
    limit = PARAM_CHARACTERS if kind == "params" else TAG_CHARACTERS
    rows = [(clean_name(name), shorten(str(value), limit)) for name, value in items]
    for start in range(0, len(rows), BATCH[kind]):
        yield rows[start : start + BATCH[kind]]

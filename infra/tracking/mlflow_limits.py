"""What MLflow can hold: names, texts and batches that it accepts, so that no value of ours makes it refuse a run."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# MLflow's limits (mlflow/utils/validation.py, 3.17).
PARAM_CHARACTERS, TAG_CHARACTERS, KEY_CHARACTERS, DIGEST_CHARACTERS = 6000, 8000, 250, 36
BATCH, ENTRIES = {"metrics": 1000, "params": 100, "tags": 100}, 1000
"""Of one call: of each kind, and of all together."""


def clean_name(name: str) -> str:
    """A key MLflow accepts: letters, digits, and ``_ - . / space``; at most 250 characters, no empty or dotted path part."""
    parts = re.sub(r"[^A-Za-z0-9_./ -]", "_", name).split("/")
    return "/".join(p for p in parts if p.strip(". "))[:KEY_CHARACTERS] or "_"


def shorten(text: str, limit: int) -> str:
    """``text``, or its beginning with length and digest of the whole where it is longer than ``limit`` characters."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= limit:
        return text
    tail = f"… ({len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"
    return text[: limit - len(tail)] + tail


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and text values: ``{"a": {"b": 1}}`` gives ``("a.b", "1")``; lists become JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


def chunks(kind: str, items: Sequence[tuple]) -> Iterator[list[tuple]]:
    """Rows as MLflow accepts them, as many at a time as it does.

    Args:
        kind: ``metrics``: (name, value, milliseconds, step), of which those without a finite value are left out; ``params`` or
            ``tags``: (name, text).
    """
    if kind == "metrics":
        rows = [(clean_name(name), value, stamp, step) for name, value, stamp, step in items if math.isfinite(value)]
    else:
        limit = PARAM_CHARACTERS if kind == "params" else TAG_CHARACTERS
        rows = [(clean_name(name), shorten(str(value), limit)) for name, value in items]
    for start in range(0, len(rows), BATCH[kind]):
        yield rows[start : start + BATCH[kind]]

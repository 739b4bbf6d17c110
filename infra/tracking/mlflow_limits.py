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
EMPTY = "_x_"
"""Form of an empty path part."""


def clean_name(name: str) -> str:
    """Make a key that MLflow accepts; different names stay different.

    Letters and digits of any script, ``_ - . /`` and space stay. Any other character becomes ``_x<hex>_`` of its code point, and so does
    the underscore of a name that holds such a form already, so the name can be read back (:func:`original_name`). Path parts that MLflow
    refuses (empty, ``.``, ``..``) are written in the same way. A name longer than 250 characters is cut and ends in 12 digits of its
    sha256.
    """
    text = re.sub(r"_(?=x[0-9a-f]*_)", "_x5f_", name)
    text = re.sub(r"[^\w./ -]", lambda found: f"_x{ord(found[0]):x}_", text)
    parts = [part.replace(".", "_x2e_") if part in (".", "..") else part or EMPTY for part in text.split("/")]
    text = "/".join(parts)
    text = "_x2e_" + text[1:] if text.startswith("..") else text
    if len(text) <= KEY_CHARACTERS:
        return text
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{text[: KEY_CHARACTERS - 13]}_{digest}"


def original_name(key: str) -> str:
    """Return the name of which :func:`clean_name` made ``key``, if that was not cut."""
    return re.sub(r"_x([0-9a-f]*)_", lambda found: chr(int(found[1], 16)) if found[1] else "", key)


def shorten(text: str, limit: int) -> str:
    """Return ``text``, or its beginning with the length and digest of the whole if it is longer than ``limit`` characters."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= limit:
        return text
    tail = f"… ({len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"
    return text[: limit - len(tail)] + tail


def flatten(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield dotted keys and text values: ``{"a": {"b": 1}}`` gives ``("a.b", "1")``; lists become JSON.

    Where two paths have one dotted key (``{"a.b": 1, "a": {"b": 2}}``), the later key ends in 12 digits of the sha256 of its path.
    """
    seen = set[str]()
    for path, text in _leaves(values, ()):
        key = ".".join(path)
        if key in seen:
            key = f"{key}_{hashlib.sha256(json.dumps(path).encode()).hexdigest()[:12]}"
        seen.add(key)
        yield key, text


def _leaves(values: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*above, str(key)))
        else:
            yield (*above, str(key)), value if isinstance(value, str) else json.dumps(value, default=str)


def metric_rows(rows: Iterable[MetricRow]) -> list[MetricRow]:
    """Metrics under names that MLflow accepts; those without a finite value are left out."""
    return [(clean_name(name), value, stamp, step) for name, value, stamp, step in rows if math.isfinite(value)]


def text_chunks(kind: Literal["params", "tags"], items: Sequence[tuple[str, object]]) -> Iterator[list[TextRow]]:
    """Names and texts that MLflow accepts, as many at a time as one call may hold."""
    limit = PARAM_CHARACTERS if kind == "params" else TAG_CHARACTERS
    rows = [(clean_name(name), shorten(str(value), limit)) for name, value in items]
    for start in range(0, len(rows), BATCH[kind]):
        yield rows[start : start + BATCH[kind]]

"""Values of settings as lines: options of the command line, YAML, and the difference of two configurations."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from flows.report.html import yaml_text


def options_text(values: Mapping[str, Any]) -> str:
    """Return ``"--set align.objective.lambda=0.3 --set align.loss.name=dpo"``."""
    return " ".join(f"--set {shlex.quote(f'{key}={_yaml(value)}')}" for key, value in values.items())


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)  # JSON is YAML


def values_yaml(values: Mapping[str, Any]) -> str:
    """Return the values as nested sections of a configuration."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    return yaml_text(nested).rstrip()


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the settings that differ, by dotted key: their two values as text, "–" where a configuration does not have the key."""
    mine, theirs = dict(_flat(before)), dict(_flat(now))
    keys = [*mine, *(key for key in theirs if key not in mine)]
    return {key: (mine.get(key, "–"), theirs.get(key, "–")) for key in keys if mine.get(key) != theirs.get(key)}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys and texts: the lines that `--set` would take."""
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _flat(part, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, "null" if value is None else str(value)

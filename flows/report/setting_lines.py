"""Values of settings as lines to copy: options of the command line, and YAML."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
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

"""Names of flow runs that say what changed since the project's last run: ``"nightly · 2026-11-30 · lr 1e-4→2e-4"``.

A person's own name is kept. Without an earlier run, or without a change, a name says what the run is (``flows/config/run_names.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import date
from pathlib import PurePosixPath
from typing import Any

from dora_core.errors import DoraError
from flows.config.models import MethodConfig
from flows.planning.generated_names import is_generated
from flows.planning.latest import read_latest
from flows.run_record import read_record
from infra.store.store import Store
from infra.tracking.mlflow_limits import flatten

MOST = 3
"""Changes that a name lists."""
CHARACTERS = 24
"""Longest value of a name."""
SHORT = {"learning_rate": "lr", "batch_size": "batch", "lambda": "λ"}
USUAL = ("align", "align.optimization", "align.objective", "align.loss")
"""Sections whose keys need no section before them."""


def run_name(store: Store, config: MethodConfig, plain: str, given: str | None, today: date) -> str:
    """Return the name of a run that begins now.

    Args:
        plain: what the run is, with the project first: ``"demo · mixture.parquet · dpo · dora λ=1"``.
        given: name that the flow run has: a person's, or Prefect's.
    """
    if given and not is_generated(given):
        return given
    changes: list[str] = []
    with suppress(DoraError, OSError, ValueError):  # a store that is away is reported by the run itself
        changes = changed(_last(store, config.project), config.model_dump(mode="json", by_alias=True))
    shown = [*changes[:MOST], *([f"{len(changes) - MOST} more"] if len(changes) > MOST else [])]
    rest = ", ".join(shown) if shown else plain.removeprefix(f"{config.project} · ")
    return f"{config.project} · {today:%Y-%m-%d} · {rest}"


def _last(store: Store, project: str) -> Mapping[str, Any] | None:
    """Return the configuration of the project's last successful run; None without one."""
    runs = [read_record(store, run_id) for run_id in {stage.run_id for stage in read_latest(store, project).values()}]
    found = [run for run in runs if run is not None and run.config]
    return max(found, key=lambda run: run.started).config if found else None


def changed(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ, as short texts, by key: ``["lr 1e-4→2e-4", "classifier epochs 3→5"]``.

    Keys that only one of them has are left out where the kind of thing changed (``loss dpo→simpo`` says it all), and where the other
    configuration is of an earlier release.
    """
    if before is None:
        return []
    old, new = (dict(flatten(json.loads(json.dumps(config, sort_keys=True)))) for config in (before, now))  # a stored one is sorted
    differing = [key for key in new if key in old and old[key] != new[key]]
    renamed = [key.removesuffix("name") for key in differing if key.endswith(".name")]
    kept = [key for key in differing if key.endswith(".name") or not any(key.startswith(prefix) for prefix in renamed)]
    return list(_texts(kept, old, new))


def _texts(keys: list[str], old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for key in keys:
        values = [_short(old[key]), _short(new[key])]
        is_long = any(value is None for value in values) or values[0] == values[1]
        yield f"{_label(key)} changed" if is_long else f"{_label(key)} {values[0]}→{values[1]}"


def _label(key: str) -> str:
    """Return ``"lr"`` for ``align.optimization.learning_rate``, ``"classifier epochs"`` for ``classifier.epochs``."""
    section, _, name = key.rpartition(".")
    if name == "name":
        section, _, name = section.rpartition(".")
    name = SHORT.get(name, name)
    return name if not section or section in USUAL else f"{section.partition('.')[0]} {name}"


def _short(text: str) -> str | None:
    """Return a value in a few characters; None where it does not fit."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(value, list | dict):
        return None
    if isinstance(value, float):
        return _number(value)
    shown = "none" if value is None else text
    shown = PurePosixPath(shown).name if "/" in shown else shown
    return shown if len(shown) <= CHARACTERS else None


def _number(value: float) -> str:
    if value and abs(value) < 0.01:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:g}"

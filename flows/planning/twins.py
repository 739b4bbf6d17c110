"""Twins of a realignment's plan: the ones to train, and a refusal where the data cannot have their records."""

from __future__ import annotations

from dora_core.config.twins import TWINS, TwinName
from dora_core.data.record_counts import UNKNOWN
from dora_core.errors import ConfigError
from flows.config.models import RealignConfig

FIRST_ROWS = 2_000
"""Rows of each input that :func:`check_twins` reads of data that has not been read before."""


def wanted_twins(config: RealignConfig) -> list[TwinName]:
    """Return ``evaluate.twins`` without the one that would be the policy itself."""
    return [name for name in config.evaluate.twins if name != "erm" or config.align.objective.name != "erm"]


def check_twins(config: RealignConfig, sources: list[str] | None) -> None:
    """Refuse twins of golden or synthetic records where no source of the data is of that kind.

    That no *record* is, although a source is, shows only when all records are read: the stage ``training_data`` of the twin refuses it,
    before anything is aligned.

    Args:
        sources: of all records, as read before; None: read the first rows, and refuse only if these are all.

    Raises:
        ConfigError: naming the sources that exist.
    """
    from dora_core.data.records import is_golden_source

    parts = {name: TWINS[name].records for name in config.evaluate.twins if TWINS[name].records != "all"}
    if not parts or config.trust.labeller is not None:  # the labeller is in the rows, not among the sources
        return
    names = _first_sources(config) if sources is None else sources
    if names is None:
        return
    names = [name for name in names if name != UNKNOWN]
    found = {"golden" if is_golden_source(name, config.data.golden_sources) else "synthetic" for name in names}
    if lacking := [name for name, records in parts.items() if records not in found]:
        raise ConfigError(
            f"evaluate.twins: {', '.join(lacking)} would train on records of {parts[lacking[0]]} sources, and the data have none: "
            f"data.golden_sources = {config.data.golden_sources}, sources: {', '.join(sorted(names)) or 'none'}",
            hint="set data.golden_sources to the trusted ones among them, or take these twins out of evaluate.twins",
        )


def _first_sources(config: RealignConfig) -> list[str] | None:
    """Sources of the first rows of data.train; None if there are more rows, or some cannot be read."""
    from dora_core.data.preview import preview_data

    preview, _, _ = preview_data(config.data, config.wanted, rows=FIRST_ROWS, shown=0, suspect=False)
    if not all(item.complete for item in preview.inputs if item.content != "golden"):
        return None
    return [*preview.total.sources]

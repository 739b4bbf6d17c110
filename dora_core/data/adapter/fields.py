"""Canonical fields of an input: the compiled path of each, by the adapter and the columns that are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dora_core.data.adapter.paths import CompiledPath

if TYPE_CHECKING:
    from dora_core.config.adapter import Adapter

UNMAPPED_BY_NAME = frozenset({"source", "weight", "label_probability"})
"""Fields that are read only where the configuration maps them: a column of that name may mean something else."""


class Fields:
    """Compiled paths of an adapter's canonical fields, for rows with these columns."""

    def __init__(self, adapter: Adapter, columns: Sequence[str]):
        self.adapter, self.columns = adapter, columns
        self._there = frozenset(columns)

    def path(self, name: str) -> CompiledPath | None:
        """Path of a canonical field; None if it is switched off, or not mapped and no column has its name."""
        mapped = getattr(self.adapter.columns, name)
        if mapped is None and name in self._there and name not in UNMAPPED_BY_NAME:
            mapped = name if name.isidentifier() else None
        return self.compile(mapped) if isinstance(mapped, str) else None

    def needed(self, name: str) -> CompiledPath:
        """Path of a field without which the shape cannot be read; the field's own name where it is not mapped."""
        return self.path(name) or self.compile(name)

    def compile(self, text: str) -> CompiledPath:
        return CompiledPath(text, self._there)

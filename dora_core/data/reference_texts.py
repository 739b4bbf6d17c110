"""Texts of the evaluation files that training data must not contain (``data.decontaminate``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dora_core.config.data import DataConfig
from dora_core.data.inputs import Input, open_files, references_of
from dora_core.data.locations import readable


def reference_texts(data: DataConfig, fingerprints: Mapping[str, str]) -> Iterator[str]:
    """All texts of the evaluation files of ``data.decontaminate``."""
    for item in references_of(data):
        yield from _texts_of(item, fingerprints)


def _texts_of(item: Input, fingerprints: Mapping[str, str]) -> Iterator[str]:
    """All texts in all rows of an input."""
    for name, reader, _ in open_files(item, fingerprints):
        with readable(name):
            for _, row in reader.rows(None, 1024):
                yield from _texts_in(row)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_in(inner)

"""Opening all inputs of a configuration: adapters resolved, rules of suspicion told the files and the evaluation texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dora_core.config.data import DataConfig
from dora_core.data.acceptance import Mapped
from dora_core.data.adapted import AdaptedInput
from dora_core.data.adapter.base import CanonicalRow
from dora_core.data.inputs import Input, inputs_of, open_files, references_of
from dora_core.data.locations import readable
from dora_core.data.problems import Problem, Reason
from dora_core.data.records import Record, Rules, Split, is_held_out
from dora_core.data.suspicion import Suspicion


def open_inputs(data: DataConfig, fingerprints: Mapping[str, str], *, references: bool = True) -> tuple[list[AdaptedInput], Suspicion]:
    """Every input with its adapter, and the rules that will see its records.

    Args:
        references: read the files of ``data.decontaminate``.

    Raises:
        DataError, ConfigError: an input cannot be read as configured, or needs a decision.
    """
    suspicion = Suspicion(data)
    inputs = [AdaptedInput(item, fingerprints) for item in inputs_of(data)]
    for source in inputs:
        for mapping in source.mappings:
            suspicion.opened(source.item.place, mapping.files, mapping.gives_split)
    for text in reference_texts(data, fingerprints) if references else ():
        suspicion.reference(text)
    return inputs, suspicion


def reference_texts(data: DataConfig, fingerprints: Mapping[str, str]) -> Iterator[str]:
    """All texts of the evaluation files of ``data.decontaminate``."""
    for item in references_of(data):
        yield from _texts_of(item, fingerprints)


def mapped(source: AdaptedInput) -> list[Mapped]:
    """How the files of an input are read, for the rules of acceptance."""
    return [Mapped(source.item.place, one.resolved.shape, tuple(one.resolved.adapter.carry), one.gives_split) for one in source.mappings]


def rules_of(data: DataConfig, item: Input) -> Rules:
    """Limits of the rows of one input."""
    return Rules(
        max_text_bytes=data.max_text_bytes,
        max_responses=data.max_responses,
        allowed_sources=None if data.sources is None else frozenset(data.sources),
        default_source=item.source.source,
    )


def split_of(record: Record, item: Input, data: DataConfig) -> Split:
    """Split of a record: ``data.eval``, the row's own, train beside ``data.eval``, else by the hash of its prompt."""
    if item.content == "eval":
        return "eval"
    if record.split is not None:
        return record.split
    if data.eval and item.content == "train":
        return "train"
    return "eval" if is_held_out(record.prompt_hash, data.holdout_fraction) else "train"


def is_repetition(value: CanonicalRow | list[Problem], problems: list[Problem]) -> bool:
    """Whether a row without an id repeats an earlier one, which is not a fault of it."""
    if not isinstance(value, CanonicalRow) or value.fields.get("id") not in (None, ""):
        return False
    return [problem.reason for problem in problems] == [Reason.DUPLICATE_ID]


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

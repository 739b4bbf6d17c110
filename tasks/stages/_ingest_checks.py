"""Refusals of ``ingest``: too many bad rows, nothing to compare, no held-out records. The first bad rows are named in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dora_core.config.data import DataConfig
from dora_core.data.records import is_golden_source
from dora_core.errors import DataError
from tasks.stages._ingest_facts import BadRowFacts

REASONS_SHOWN = 3


@dataclass
class Tally:
    """Counts of one kind of input: train, eval, golden."""

    rows: int = 0
    bad: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, BadRowFacts] = field(default_factory=dict)
    repeated: int = 0

    def in_words(self) -> str:
        """The first bad row of each of the most frequent reasons."""
        shown = [self.first[reason] for reason, _ in self.reasons.most_common(REASONS_SHOWN)]
        return "".join(f"\n  {bad.reason}, e.g. row {bad.row} of {bad.file}: {bad.text}" for bad in shown)


def check_quality(tallies: Mapping[Literal["train", "eval", "golden"], Tally], data: DataConfig, quarantine: Path) -> None:
    """Refuse a share of bad rows beyond the bound, and inputs without a good row.

    Raises:
        DataError: names the first bad rows.
    """
    limit = data.max_bad_fraction
    for kind, tally in tallies.items():
        reasons = ", ".join(f"{reason} {n}" for reason, n in tally.reasons.most_common())
        counts = f"{tally.bad} of {tally.rows} rows in data.{kind} are bad ({reasons})"
        if tally.bad > limit * tally.rows:
            raise DataError(
                f"{counts}, more than data.max_bad_fraction = {limit}{tally.in_words()}",
                hint="write the lines above, repair the data or raise data.max_bad_fraction; "
                f"file, row (from 0), field and reason of each bad row are in {quarantine}",
            )
        if getattr(data, kind) and not tally.kept:
            message = f"{counts}: no good row is left{tally.in_words()}" if tally.rows else f"data.{kind} holds no rows"
            raise DataError(message, hint=f"give data.{kind} at least one good row; reasons are in {quarantine}")


def check_sources(names: list[str], golden_rows: int, data: DataConfig) -> None:
    """Refuse data without a source, or without a trusted one.

    Args:
        names: sources of the records.

    Raises:
        DataError: names the sources there are.
    """
    if not names and not golden_rows:
        hint = "set data.train[i].source: NAME, or data.train[i].columns.sources: COLUMN; or give trusted responses in data.golden"
        raise DataError("no response in data.train has a source, and calibration compares sources", hint=hint)
    if not golden_rows and not any(is_golden_source(name, data.golden_sources) for name in names):
        raise DataError(
            f"no source matches data.golden_sources = {data.golden_sources} and data.golden is empty: there is nothing to align towards",
            hint=f"set data.golden_sources to the trusted ones among: {', '.join(names)}; or give trusted responses in data.golden",
        )


def check_splits(splits: Counter[str], data: DataConfig, given: int) -> None:
    """Refuse data without training or without held-out records.

    Args:
        given: records with a split in the data.

    Raises:
        DataError: with the way out.
    """
    for split in ("train", "eval"):
        if not splits[split]:
            hint = f"prompts are split by hash: give more prompts, or change data.holdout_fraction = {data.holdout_fraction}"
            if given or data.eval:
                other = "eval" if split == "train" else "train"
                hint = f"the data gives the split of {given} records, all of them {other}: add inputs, or write `columns: {{split: false}}`"
            raise DataError(f"none of {splits.total()} records falls into the {split} split", hint=hint)

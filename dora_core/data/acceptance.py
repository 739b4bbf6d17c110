"""Rules by which a run accepts its data, with one wording for the plan, the preview and the stage ``ingest``.

Each rule returns a :class:`Refusal`, or None where the data passes. Rules over the texts are in ``suspicion``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import Field

from dora_core.config.data import DataConfig
from dora_core.config.method import Grouping
from dora_core.config.path_syntax import parse_path, quote_key
from dora_core.errors import ConfigError, DataError, DoraError, did_you_mean
from dora_core.losses.base import PreferenceLoss
from dora_core.losses.unpaired import unpaired_remedy
from dora_core.strict_model import StrictModel

REASONS_SHOWN = 3
NAMES_SHOWN = 20


class Wanted(NamedTuple):
    """What a run would do with the data.

    Attributes:
        objective: its name.
        uses_factors: whether it reads h.
        loss: of the alignment; None where nothing is aligned.
        groups: carried columns by which evaluation is grouped.
    """

    objective: str = "dora"
    uses_factors: bool = True
    loss: PreferenceLoss | None = None
    groups: tuple[Grouping, ...] = ()


class Refusal(NamedTuple):
    """Cause and next step."""

    message: str
    hint: str
    error: type[DoraError] = DataError

    def text(self) -> str:
        """One line."""
        return f"{self.message} → {self.hint}"

    def exception(self) -> DoraError:
        """The error to raise."""
        return self.error(self.message, hint=self.hint)


def refuse_first(refusals: Iterable[Refusal | None]) -> None:
    """Raise the first refusal, if there is one.

    Raises:
        DataError, ConfigError: as the rule says.
    """
    for refusal in refusals:
        if refusal is not None:
            raise refusal.exception()


# ------------------------------------------------------------------------------------------------------------- rows


class BadRow(StrictModel):
    """The first problem of a row that cannot be a record."""

    file: str
    row: int = Field(description="From 0.")
    reason: str
    text: str = Field(description="Field, what was found, the line to write.")

    def in_words(self) -> str:
        """One sentence."""
        return f"row {self.row} of {self.file}: {self.text}"


@dataclass
class Quality:
    """Rows of one kind of input (train, eval, golden): all, bad ones with their reasons, and those that are good."""

    rows: int = 0
    bad: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, BadRow] = field(default_factory=dict)

    def see_bad(self, row: BadRow) -> None:
        """Count a bad row."""
        self.bad += 1
        self.reasons[row.reason] += 1
        self.first.setdefault(row.reason, row)

    def in_words(self) -> str:
        """The first bad row of each of the most frequent reasons."""
        shown = [self.first[reason] for reason, _ in self.reasons.most_common(REASONS_SHOWN)]
        return "".join(f"\n  {bad.reason}, e.g. {bad.in_words()}" for bad in shown)


def bad_rows(kind: str, quality: Quality, data: DataConfig, *, seen: str = "", quarantine: str | None = None) -> Refusal | None:
    """Too many bad rows, or no good one.

    Args:
        seen: "in the first 2,000 rows: " where not all rows were read.
        quarantine: the file with all bad rows, if there is one.
    """
    listed = f"file, row (from 0), field and reason of each bad row are in {quarantine}" if quarantine else "rows count from 0"
    reasons = ", ".join(f"{reason} {n}" for reason, n in quality.reasons.most_common())
    counts = f"{seen}{quality.bad} of {quality.rows} rows in data.{kind} are bad ({reasons})"
    if quality.bad > data.max_bad_fraction * quality.rows:
        return Refusal(
            f"{counts}, more than data.max_bad_fraction = {data.max_bad_fraction}{quality.in_words()}",
            f"write the lines above, repair the data or raise data.max_bad_fraction; {listed}",
        )
    if getattr(data, kind) and not quality.kept:
        message = f"{counts}: no good row is left{quality.in_words()}" if quality.rows else f"data.{kind} holds no rows"
        return Refusal(message, f"give data.{kind} at least one good row; {listed}")
    return None


# ---------------------------------------------------------------------------------------------------------- records


def trusted_sources(names: Sequence[str], golden_rows: int, data: DataConfig, *, seen: str = "") -> Refusal | None:
    """Data without a source, or without a trusted one.

    Args:
        names: sources of the records.
        golden_rows: good rows of ``data.golden``.
        seen: as in :func:`bad_rows`.
    """
    from dora_core.data.records import is_golden_source

    if golden_rows or any(is_golden_source(name, data.golden_sources) for name in names):
        return None
    if not names:
        return Refusal(
            f"{seen}no response in data.train has a source, and calibration compares sources",
            "set data.train[i].source: NAME, or data.train[i].columns.sources: COLUMN; or give trusted responses in data.golden",
        )
    shown = ", ".join(names[:NAMES_SHOWN]) + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else "")
    return Refusal(
        f"{seen}no source matches data.golden_sources = {data.golden_sources} and data.golden is empty: there is nothing to align towards",
        f"set data.golden_sources to the trusted ones among: {shown}; or give trusted responses in data.golden",
    )


def both_splits(splits: Mapping[str, int], given: int, data: DataConfig, *, overlapping: int = 0) -> Refusal | None:
    """Data without training or without held-out records.

    Args:
        given: records with a split in the data.
        overlapping: training records that were left out because their prompt is held out.
    """
    records = sum(splits.values())
    for split, other in (("train", "eval"), ("eval", "train")):
        if not splits.get(split):
            hint = f"prompts are split by hash: give more prompts, or change data.holdout_fraction = {data.holdout_fraction}"
            if given or data.eval:
                hint = f"the data gives the split of {given} records, all of them {other}: add inputs, or write `columns: {{split: false}}`"
            if overlapping and split == "train":
                hint = f"the prompts of all {overlapping} training records are held out, too: give other ones (data.split_overlap)"
            return Refusal(f"none of {records} records falls into the {split} split", hint)
    return None


# ---------------------------------------------------------------------------------------------- use of the mapped rows


class Mapped(NamedTuple):
    """Files of an input that are read the same way.

    Attributes:
        place: key of the input, such as ``data.train[0]``.
        carried: paths of the carried columns, as in the adapter.
        gives_split: whether rows say their split.
    """

    place: str
    shape: str
    carried: tuple[str, ...]
    gives_split: bool

    @property
    def content(self) -> str:
        """train, eval or golden."""
        return self.place.removeprefix("data.").partition("[")[0]


def unpaired_inputs(loss: PreferenceLoss, places: Sequence[str]) -> Refusal | None:
    """Inputs at ``places``, whose rows are unpaired, under a loss that compares responses."""
    if loss.reads_unpaired or not places:
        return None
    return Refusal(
        f"{', '.join(places)}: rows are unpaired (one response with a label), and align.loss.name: {loss.name} "
        "compares responses of one record",
        unpaired_remedy(),
    )


def unusable(wanted: Wanted, data: DataConfig, mapped: Sequence[Mapped]) -> Iterator[Refusal]:
    """Rows that the run cannot use as it is configured, by how they are read."""
    if wanted.loss is not None:
        places = [one.place for one in mapped if one.content == "train" and one.shape == "unpaired"]
        unpaired = unpaired_inputs(wanted.loss, list(dict.fromkeys(places)))
        if unpaired is not None:
            yield unpaired
    held_out = [one for one in mapped if one.content == "eval" or (one.content == "train" and (one.gives_split or not data.eval))]
    carried = list(dict.fromkeys(path for one in held_out for path in one.carried))
    for i, grouping in enumerate(wanted.groups):
        if not any(_leads_to(grouping.column, path) for path in carried):
            place = "data.eval" if data.eval else "data.train"
            yield Refusal(
                f"evaluate.groups[{i}]: no held-out input carries the column {grouping.column!r}",
                f"{did_you_mean(grouping.column, carried)}; or carry it: {place}[0].carry: [{grouping.column}]",
                ConfigError,
            )


def _leads_to(column: str, carried: str) -> bool:
    """Whether the path ``column`` is a carried one, or leads into it."""
    if carried in (column, quote_key(column)):
        return True
    wanted, there = parse_path(column)[0], parse_path(carried)[0]
    return all(isinstance(step, str) for step in there) and wanted[: len(there)] == there

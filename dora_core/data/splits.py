"""Splits of an input: the expression that chooses them, slices of their rows, and split names in file names and columns.

Expressions and rounding are those of ``datasets`` (``train[:10%]``, ``train[10:20]``, ``train[-5:]``, ``train+validation``).
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from dora_core.errors import DataError

_PART = re.compile(r"\s*(?P<split>\w[\w.-]*)\s*(\[\s*(?P<start>-?\d+%?)?\s*:\s*(?P<stop>-?\d+%?)?\s*\])?\s*")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_NAMED_SHARD = re.compile(r"data/(?P<split>[\w.-]+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.[^/]*")
_TRAIN = re.compile(r"train", re.IGNORECASE)
_EVAL = re.compile(r"test|val|dev|eval|hold[-_ ]?out|held[-_ ]?out", re.IGNORECASE)
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_CANONICAL = {word: name for name, words in _KEYWORDS.items() for word in words}
_SHARD_WORDS = {"part", "shard", "chunk", "file", "data", "set", "split", "batch", "dataset", "rows"}


class Slice(NamedTuple):
    """Bounds of the rows of a split as written: ``"10"``, ``"-5"``, ``"10%"``; None is the first row or the end."""

    start: str | None
    stop: str | None

    @property
    def is_relative(self) -> bool:
        """Whether the bounds depend on the number of rows."""
        return any(bound is not None and (bound.endswith("%") or bound.startswith("-")) for bound in self)

    def window(self, rows: int) -> tuple[int, int]:
        """First row and end, for a split of ``rows`` rows."""
        return _position(self.start, rows, 0), _position(self.stop, rows, rows)


class Part(NamedTuple):
    """One term of a split expression. ``rows`` is None for the whole split."""

    split: str
    rows: Slice | None


def parse_split(expression: str, place: str) -> list[Part]:
    """The terms of a split expression, in their order.

    Args:
        place: key of the configuration, for messages.

    Raises:
        DataError: the expression has another form.
    """
    found = []
    for term in expression.split("+"):
        match = _PART.fullmatch(term)
        if match is None:
            raise DataError(
                f"{place}.split: cannot read {expression!r}",
                hint="allowed: a split's name, a slice (train[:10%], train[10:20], train[-5:]), or several joined by + (train+validation)",
            )
        found.append(Part(match["split"], Slice(match["start"], match["stop"]) if "[" in term else None))
    return found


def split_of_file(below: str) -> str | None:
    """The split in the name of a file, as the hub names them: ``train-00000-of-00002.parquet``, ``test.jsonl``, ``dev/a.jsonl``.

    Args:
        below: path of the file below the folder of the input.
    """
    if match := re.fullmatch(_NAMED_SHARD, below):
        return _in_word(match["split"]) or match["split"]
    *folders, name = PurePosixPath(below).parts
    for word in (name.partition(".")[0] if "." in name else name, *reversed(folders)):
        key, equals, value = word.partition("=")
        found = value if equals and key == "split" else None if equals else _in_word(_SHARD.sub("", word))
        if found:
            return found
    return None


def is_named_shard(below: str) -> bool:
    """Whether a file is named as the hub names the shards of a split: ``data/train-00000-of-00002.parquet``."""
    return re.fullmatch(_NAMED_SHARD, below) is not None


def _in_word(word: str) -> str | None:
    """``train`` for ``train``, ``my-train-2`` and ``train_part_1``; ``train_prefs`` for itself: another split than ``train``."""
    first, _, rest = word.lower().partition("_")
    words = [w for w in re.split(r"[-._ 0-9]+", word.lower()) if w]
    if first in _CANONICAL and re.match(r"[a-z]", rest) and not _SHARD_WORDS & set(words):
        return word
    found = {_CANONICAL[w] for w in words if w in _CANONICAL}
    return found.pop() if len(found) == 1 else word if found else None


def _position(bound: str | None, rows: int, default: int) -> int:
    if bound is None:
        return default
    at = round(int(bound[:-1]) * rows / 100) if bound.endswith("%") else int(bound)
    return min(max(at + rows, 0) if at < 0 else at, rows)


def split_named(value: str, further: dict[str, Any]) -> str | None:
    """``"train"`` or ``"eval"`` for a split's name (train_prefs, valid1, test, …), by ``further`` first; None if it is neither."""
    name = value.strip().casefold()
    if name in further:
        return str(further[name])
    return "train" if _TRAIN.match(name) else "eval" if _EVAL.match(name) else None

"""Recognition of inputs without a configuration: preset, content, split, and columns that need a decision.

An assumption is a comment that begins with ``ASSUMED``; a decision that only the user can make is one that begins with ``DECIDE``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dora_core.config.adapter import Adapter
from dora_core.config.data import DataSource
from dora_core.data.adapted import sample_of
from dora_core.data.adapter.resolve import Resolved, resolve
from dora_core.data.columns_left import Decision, columns_left
from dora_core.data.folders import is_visible
from dora_core.data.inputs import Input, open_files
from dora_core.data.presets import as_text, expand, recognise
from dora_core.data.splits import split_of_file
from dora_core.errors import ConfigError, DataError

Content = Literal["train", "eval", "golden"]
_HELD_OUT = frozenset({"test", "eval", "validation", "valid", "val", "dev", "holdout"})


@dataclass
class Found:
    """An input and its recognised mapping."""

    path: str
    content: Content
    resolved: Resolved
    keys: dict[str, Any] = field(default_factory=dict)
    """Keys beside the path, as they are written."""
    comments: list[str] = field(default_factory=list)
    text: str = ""
    """The keys that the preset sets, as YAML."""


def look_at_all(path: str, *, several: bool) -> list[Found]:
    """Recognise an input; a folder with splits may be two inputs: its training and its evaluation data."""
    splits = splits_at(Path(path).expanduser())
    train = min((name for name in splits if name.startswith("train")), key=lambda name: ("pref" not in name, name), default=None)
    if train is None:
        return [look_at(path, several=several)]
    held_out = [first + train.removeprefix("train") for first in ("test", "validation", "eval", "dev")]
    named = f"ASSUMED split {train} among those there: {', '.join(splits)}"
    found = [look_at(path, split=None if train == "train" else train)]
    found[0].comments += [named] if train != "train" else []
    for name in held_out:
        if name in splits and found[0].content == "train":
            found.append(look_at(path, content="eval", split=name))
            found[1].comments.append(f"ASSUMED evaluation data: the split {name}")
            break
    return found


def splits_at(folder: Path) -> list[str]:
    """Return the splits of a saved ``datasets`` dictionary, or of the file names in a folder; empty for anything else."""
    if not folder.is_dir():
        return []
    try:
        return sorted(json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        below = (str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        return sorted({split for name in below if is_visible(name) and (split := split_of_file(name)) is not None})


def look_at(path: str, *, content: Content | None = None, several: bool = False, split: str | None = None) -> Found:
    """Recognise one input, or one split of it.

    Args:
        split: the split to read; None: the whole input.
        content: its kind; None: preference data if it can be read as that, else trusted responses.
        several: whether it is one of several inputs, so that it may be the evaluation data of another.

    Raises:
        DataError: it cannot be read, or its mapping is ambiguous.
    """
    local = Path(path).expanduser()
    where = str(local.resolve()) if local.exists() else path
    source = DataSource(path=where, **({} if split is None else {"split": split}))
    opened = next(open_files(Input(source, "train", path), {}), None)
    if opened is None:
        raise DataError(f"{path} holds no rows", hint="give a file with at least one row")
    name, reader = opened.name, opened.reader
    columns, sample = list(dict.fromkeys(reader.columns)), sample_of(name, reader)
    first: DataError | ConfigError | None = None
    for trusted in (False, True) if content is None else (content == "golden",):
        try:
            found = _resolved(where, columns, sample, reader.ragged, path, trusted)
        except (DataError, ConfigError) as error:
            first = first or error
            if not trusted and recognise(columns, sample):
                break  # preferences that need a decision are no trusted responses
            continue
        if split is not None:
            found.keys["split"] = split
        if trusted:
            found.content = "golden"
        elif content is not None:
            found.content = content
        elif several and content is None and _is_held_out(local):
            found.content = "eval"
            found.comments.append("ASSUMED evaluation data, by its name; move it to data.train if it is not")
        return found
    assert first is not None
    raise first


def _is_held_out(path: Path) -> bool:
    return bool(_HELD_OUT & set(re.split(r"[-_. 0-9]+", path.name.lower())))


def _resolved(where: str, columns: Sequence[str], sample: Sequence[dict[str, Any]], ragged: bool, name: str, trusted: bool) -> Found:
    adapter, preset, keys, comments, text = Adapter(), None, dict[str, Any](), list[str](), ""
    fitting = recognise(columns, sample, golden=trusted)
    if len(fitting) == 1:
        (preset,) = fitting
        expanded = expand(preset, None, columns, sample)
        keys, adapter, text = {"preset": preset}, expanded.adapter, expanded.text
    shaped = _shaped(adapter, trusted)
    for decision in columns_left(shaped, columns, sample).decisions:
        line = _decided(decision, keys, shaped, columns)
        if line is None:
            continue  # resolve() refuses it, with the lines to choose from
        comments.append(line)
    resolved = resolve(
        Adapter.model_validate(keys),
        columns,
        sample,
        place=f"data.{'golden' if trusted else 'train'}",
        name=name,
        golden=trusted,
        ragged=ragged,
    )
    if preset is None:
        text = as_text(resolved.adapter)
    return Found(where, "train", resolved, keys, comments, text)


def _shaped(adapter: Adapter, trusted: bool) -> Adapter:
    return (
        Adapter.model_validate({**adapter.model_dump(exclude_unset=True), "shape": "single"})
        if trusted and adapter.shape is None
        else adapter
    )


def _decided(decision: Decision, keys: dict[str, Any], adapter: Adapter, columns: Sequence[str]) -> str | None:
    """Decide for one column in ``keys`` and return the comment; None where a choice could thin the records or turn their labels round."""
    column, kind = decision.column, decision.looks_like
    choices = " or ".join(f"`{line}`" for line in decision.lines)
    if kind == "a system prompt":
        keys.setdefault("context", {})["system"] = column
        return f"ASSUMED column {column!r} is the system prompt; else {choices}"
    if decision.marks:
        keys.setdefault("leave_out", {})[column] = list(decision.marks)
        return f"ASSUMED rows that column {column!r} marks are left out; else {choices}"
    if kind in ("a split", "a weight") and "`" not in column:
        keys.setdefault("columns", {})[kind.removeprefix("a ")] = column
        return f"ASSUMED column {column!r} is the {kind.removeprefix('a ')}; else {choices}"
    labels = ("a winner",) if adapter.shape == "pair" else ("a winner", "a rank", "a score")
    labelled = adapter.label is not None or adapter.columns.rewards or adapter.columns.ranks or {"rewards", "ranks"} & set(columns)
    if kind in labels and not labelled and adapter.shape != "single":
        return None
    if kind in ("a winner", "a margin", "a rank", "a score", "a source"):
        keys.setdefault("carry", []).append(column)
        return f"DECIDE column {column!r} looks like {kind}, and is only kept beside the records: {choices}"
    return None

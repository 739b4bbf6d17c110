"""Driver: raw rows of one input → canonical rows or problems, by a resolved adapter.

An adapter is *resolved* first (``dora_core/data/adapter/resolve.py``: preset, shape, paths, columns left); here it only runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dora_core.config.adapter import LABELS_OF_SHAPE, Adapter, Shape
from dora_core.data.adapter.canonical import CanonicalRow
from dora_core.data.adapter.fields import Fields
from dora_core.data.adapter.named_values import NamedValues
from dora_core.data.adapter.numbers import describe
from dora_core.data.adapter.paths import CompiledPath, Missing
from dora_core.data.adapter.shapes.base import shapes
from dora_core.data.problems import Problem, Reason, problem
from dora_core.data.splits import split_named
from dora_core.errors import ConfigError

_INDEX = re.compile(r"\[(\d+)\]")


class RowAdapter:
    """An adapter compiled for rows with these columns. ``notes`` counts everything that was left out or decided, by what it is.

    Raises:
        ConfigError: the adapter has no shape and the columns show none, or the shape needs a label.
    """

    def __init__(self, adapter: Adapter, columns: Sequence[str]):
        self.adapter, self.columns = adapter, list(columns)
        self.notes: Counter[str] = Counter()
        self.shape = adapter.shape or shape_by_columns(adapter, columns)
        if self.shape is None:
            raise ConfigError(
                "the adapter has no shape, and no columns that show one",
                hint="set `shape`, or map `columns: {chosen: …, rejected: …}` or `columns: {responses: …}`; columns there: "
                + ", ".join(columns),
            )
        self._described = shapes()[self.shape]
        if self._described.label_example and adapter.label is None and adapter.votes is None:
            raise ConfigError(
                f"shape {self.shape} needs `label`: where the rows say which response is better", hint=self._described.label_example
            )
        if self.shape == "mixed" and adapter.label is not None:
            raise ConfigError("the columns hold pairs and lists, and `label` is for one of them", hint="set `shape: pair` or `shape: list`")
        if self.shape == "mixed" and adapter.votes is not None:
            raise ConfigError("the columns hold pairs and lists, and `votes` are on pairs", hint="set `shape: pair`")
        allowed = LABELS_OF_SHAPE.get(self.shape, ())
        if adapter.label is not None and not isinstance(adapter.label, allowed):
            kinds = ", ".join(kind.__name__.removesuffix("Label").lower() for kind in allowed) or "none"
            raise ConfigError(
                f"shape {self.shape} cannot have this kind of label", hint=f"kinds it can have: {kinds}; or set another `shape`"
            )
        self._split = Fields(adapter, columns).path("split")
        self._splits = {name.strip().casefold(): split for name, split in adapter.splits.items()}
        there = frozenset(columns)
        self._left_out = [(CompiledPath(path, there), NamedValues({"out": values})) for path, values in adapter.leave_out.items()]
        compile_row = self._described.by_row
        self._by_row = None if compile_row is None else compile_row(adapter, columns, self.notes)

    def _is_left_out(self, row: dict[str, Any]) -> bool:
        """Whether the configuration leaves this row out; counted."""
        for path, values in self._left_out:
            found = path.get(row)
            if type(found) is not Missing and values.of(found) is not None:
                self.notes[f"rows left out by `{path.text}`"] += 1
                return True
        return False

    def is_train(self, row: Any) -> bool:
        """Whether a raw row says, in its own column, that it belongs to training."""
        value = self._split.get(row) if self._split is not None and type(row) is dict else None
        return type(value) is str and split_named(value, self._splits) == "train"

    def rows(self, rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, CanonicalRow | list[Problem]]]:
        """(position, canonical row or problems). Shapes rows and tree yield a record at the position of its first row, after all rows were
        read."""
        if self._by_row is None:
            yield from self._streamed(rows)
            return
        read = self._by_row
        for index, row in rows:
            if type(row) is not dict:
                yield index, _not_a_row(row)
                continue
            if self._left_out and self._is_left_out(row):
                continue
            adapted = read(row)
            if adapted is not None:
                yield index, adapted

    def _streamed(self, rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, CanonicalRow | list[Problem]]]:
        refused: list[tuple[int, list[Problem]]] = []

        def objects() -> Iterator[tuple[int, dict[str, Any]]]:
            for index, row in rows:
                if type(row) is dict:
                    if not (self._left_out and self._is_left_out(row)):
                        yield index, row
                else:
                    refused.append((index, _not_a_row(row)))

        assert self._described.by_stream is not None, "a shape reads row by row or streams"
        for item in self._described.by_stream(self.adapter, self.columns, self.notes).stream(objects()):
            yield from refused
            refused.clear()
            yield item
        yield from refused

    def place_of(self, field: str) -> str:
        """The user's name for a canonical field such as ``responses[2]``, for messages of ``parse_row``."""
        fields = Fields(self.adapter, self.columns)
        root = re.split(r"[\[.]", field, maxsplit=1)[0]
        rest = field[len(root) :]
        index = _INDEX.match(rest)
        two = self._described.two
        if two is not None and root in ("responses", "sources") and index is not None and int(index[1]) < 2:
            name = two[int(index[1])] + ("_source" if root == "sources" else "")
            path = fields.path(name) or fields.path("source" if root == "sources" else name)
            return (path.text if path else name) + rest[index.end() :]
        if self.shape == "ab" and root in ("chosen", "rejected"):
            return " or ".join(fields.needed(name).text for name in ("a", "b")) + rest
        if self.shape == "rows" and root == "responses":
            return fields.needed("response").text
        if self.shape == "tree" and self.adapter.tree is not None and root in ("responses", "prompt"):
            return self.adapter.tree.text
        path = fields.path(root) if root in type(self.adapter.columns).model_fields else None
        if path is None:
            return field
        return path.element(int(index[1])) + rest[index.end() :] if index is not None and root != "prompt" else path.text + rest


def shape_by_columns(adapter: Adapter, columns: Sequence[str]) -> Shape | Any:
    """The shape that mapped or canonical columns show; ``mixed`` for pairs and lists in one file, None if they show none."""
    fields = Fields(adapter, columns)
    if adapter.tree is not None:
        return "tree"
    has_list, has_pair = fields.path("responses") is not None, fields.path("chosen") is not None and fields.path("rejected") is not None
    if has_list and has_pair:
        mapped = {name for name in ("responses", "chosen", "rejected") if getattr(adapter.columns, name)}
        return "list" if mapped == {"responses"} else "pair" if mapped and "responses" not in mapped else "mixed"
    if has_list:
        return "list"
    if has_pair:
        return "pair"
    if fields.path("a") is not None and fields.path("b") is not None and (adapter.label is not None or adapter.votes is not None):
        return "ab"
    return None


def _not_a_row(row: Any) -> list[Problem]:
    if isinstance(row, Problem):
        return [row]
    return [problem("", Reason.WRONG_TYPE, f"row is {describe(row)}, expected an object")]

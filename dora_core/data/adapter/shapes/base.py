"""The descriptor of a shape, how responses lie in rows, and the search for shapes in this folder.

**A new shape** is its name in ``dora_core/config/adapter.py`` (with the labels that it can have) and one file in this folder that ends with
``SHAPE = RowShape(…)``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from dora_core.data.adapter.canonical import Adapted, CanonicalRow
from dora_core.data.problems import Problem

if TYPE_CHECKING:
    from dora_core.config.adapter import Adapter

ReadRow: TypeAlias = Callable[[dict[str, Any]], Adapted]


class ReadStream(Protocol):
    """Reads all rows of an input, because rows belong together."""

    def stream(self, rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, CanonicalRow | list[Problem]]]:
        """(row, problems) as they are met, and records at the position of their first row."""
        ...


@dataclass(frozen=True)
class RowShape:
    """A shape's descriptor.

    Attributes:
        name: value of `shape` in the configuration; ``mixed`` is decided by the columns alone.
        by_row: compiles the reader of one row from an adapter, the columns and the counts of notes; None for a shape that streams.
        by_stream: compiles the reader of all rows; None for a shape that reads row by row.
        fields: canonical fields that only some shapes have; the others (id, prompt, source, task, split, weight) all have.
        needed: fields without which the shape cannot be read.
        two: canonical names of ``responses[0]`` and ``responses[1]``, for messages; None where the row has a list of them.
        label_example: the shape needs a label, written like this; empty: it needs none.
        always_read: columns that it reads also where the configuration ignores them.
    """

    name: str
    by_row: Callable[[Adapter, Sequence[str], Counter[str]], ReadRow] | None = None
    by_stream: Callable[[Adapter, Sequence[str], Counter[str]], ReadStream] | None = None
    fields: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    two: tuple[str, str] | None = None
    label_example: str = ""
    always_read: frozenset[str] = frozenset()


@cache
def shapes() -> dict[str, RowShape]:
    """Every shape by its name.

    Raises:
        TypeError: a module of this folder does not end with a descriptor that has its name and one kind of reader.
    """
    package, found = __name__.rpartition(".")[0], dict[str, RowShape]()
    for info in sorted(pkgutil.iter_modules([str(Path(__file__).parent)]), key=lambda info: info.name):
        module = f"{package}.{info.name}"
        if module == __name__:
            continue
        shape = getattr(importlib.import_module(module), "SHAPE", None)
        if not isinstance(shape, RowShape) or shape.name != info.name or (shape.by_row is None) == (shape.by_stream is None):
            raise TypeError(f"{module} does not end with SHAPE = RowShape({info.name!r}, by_row=… or by_stream=…)")
        found[shape.name] = shape
    return found
